// witness: a score that only the tests know; it scores nothing and tells what a stage is shown of a layer.
//
// spec      witness(window=0, columns=false, tokens=false, again=false)
// needs     what its options say
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

#include <functional>

namespace mneme::mechanisms::witness {

/// Called with every layer that is looked at, where a test has set it.
std::function<void(const LayerView&)>& told() {
  static std::function<void(const LayerView&)> told;
  return told;
}

class Witness final : public ScoreStage {
 public:
  struct Options {
    std::int64_t window = 0;
    bool columns = false, tokens = false, again = false;
  };
  static void describe(Describe& d, Options& o) {
    d("window", o.window, at_least(0), "last queries that it is shown");
    d("columns", o.columns, "it is shown column sums");
    d("tokens", o.tokens, "it is shown token ids");
    d("again", o.again, "it is shown what a second pass over the prompt looks at");
  }
  explicit Witness(const Options& o) : o_(o) {}

  [[nodiscard]] Needs needs() const override {
    Needs needs;
    if (o_.window > 0) needs.attention = AttentionLevel::last_rows;
    if (o_.columns) needs.attention = AttentionLevel::column_sums;
    needs.query_window = o_.window;
    needs.token_ids = o_.tokens;
    needs.reconstruction = o_.again;
    return needs;
  }

  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    if (told()) told()(layer);
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h)
      out.push_back(at::zeros({layer.head(h).entries()}));
    return out;
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Witness>("witness", "tells what a stage is shown, for the tests");
}

}  // namespace mneme::mechanisms::witness
