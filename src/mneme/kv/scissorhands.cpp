// scissorhands: an entry matters as often as it was attended to above average of late.
//
//   s_j = red_g #{ i in the last `window` queries : a_gij > 1 / n_i }     n_i: entries that query i sees
//
// spec      scissorhands(window=64, reduce=mean)
// holds     the last `window` queries
// cost      window x entries weights of each head when entries are dropped
// needs     the rows of the last `window` queries
// source    Liu et al. 2023, arXiv:2305.17118
// departs   the paper counts how often an entry lay below average and drops the highest count: the same for entries that
//           all of these queries see. Rows are taken over what is held now
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"
#include "mneme/kv/query_group.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace mneme::kv::scissorhands {

class Scissorhands final : public ScoreStage {
 public:
  struct Options {
    std::int64_t window = 64;
    std::string reduce = "mean";
  };
  static void describe(Describe& d, Options& o) {
    d("window", o.window, at_least(1), "last queries that are counted");
    d("reduce", o.reduce, a_reduction(), "what query heads that share an entry make of it");
  }
  explicit Scissorhands(const Options& o) : o_(o) {}

  [[nodiscard]] Needs needs() const override {
    Needs needs;
    needs.attention = AttentionLevel::last_rows;
    needs.query_window = o_.window;
    return needs;
  }

  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    const auto& positions = layer.query_positions();
    const auto w = std::min(o_.window, static_cast<std::int64_t>(positions.size()));
    const std::vector<std::int64_t> last(positions.end() - w, positions.end());
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h) {
      const auto head = layer.head(h);
      if (w == 0) {
        out.push_back(at::zeros({head.entries()}));
        continue;
      }
      const auto of_entries = at::tensor(
                     at::ArrayRef<std::int64_t>(head.positions.data(), head.positions.size()),
                     at::kLong),
                 of_queries = at::tensor(last, at::kLong);
      const auto seen = (of_entries <= of_queries.unsqueeze(1)).sum(1).to(at::kFloat);  // [w]
      const auto average = seen.reciprocal().unsqueeze(1);
      const auto above = (layer.window_weights(h, w) > average).to(at::kFloat);  // [G,w,N]
      out.push_back(over_group(above.sum(1), o_.reduce));
    }
    return out;
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Scissorhands>("scissorhands",
                               "entries score how often they were above average of late",
                               "scissorhands-2023");
}

}  // namespace mneme::kv::scissorhands
