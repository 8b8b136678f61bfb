// random: entries score by lot; what every other score has to beat.
//
//   s_t = U(seed, layer, head, t)     uniform in [0, 1); t: when the entry came, counted from 0
//
// spec      random(seed=0)
// holds     nothing; an entry scores the same whatever the chunks and whatever else is held
// needs     the order of the entries
#include "mneme/core/generator.h"
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

namespace mneme::kv::random {

class Random final : public ScoreStage {
 public:
  struct Options {
    std::int64_t seed = 0;
  };
  static void describe(Describe& d, Options& o) { d("seed", o.seed, "of the lots"); }
  explicit Random(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h) {
      const auto lots = Generator(static_cast<std::uint64_t>(o_.seed))
                            .split(static_cast<std::uint64_t>(layer.layer))
                            .split(static_cast<std::uint64_t>(h));
      const auto head = layer.head(h);
      auto scores = at::empty({head.entries()}, at::kFloat);
      auto* score = scores.mutable_data_ptr<float>();
      for (const auto t : head.token_indices)
        *score++ = static_cast<float>(lots.split(static_cast<std::uint64_t>(t)).uniform());
      out.push_back(std::move(scores));
    }
    return out;
  }

 private:
  Options o_;
};

void enrol(Registry& r) { r.add<KvStage, Random>("random", "entries score by lot: a control"); }

}  // namespace mneme::kv::random
