// tova: token omission via attention; what the last query looked at least, all heads of the layer together, goes first.
//
//   s_t = mean of a_hj over all query heads h that hold the entry j of token t     a: the row of the last query
//
// spec      tova()
// holds     the last query; all heads of a layer keep the same tokens
// needs     the row of the last query
// source    Oren et al. 2024, arXiv:2401.06104
// departs   where heads hold different tokens, a token scores the mean over those that hold it
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

#include <unordered_map>

namespace mneme::kv::tova {

class Tova final : public ScoreStage {
 public:
  [[nodiscard]] Needs needs() const override {
    Needs needs;
    needs.attention = AttentionLevel::last_rows;
    needs.query_window = 1;
    return needs;
  }
  [[nodiscard]] KvScope scope() const override { return KvScope::layer; }

  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    struct Sum {
      double weight = 0, heads = 0;
    };
    std::unordered_map<std::int64_t, Sum> of_token;
    const bool none = layer.query_positions().empty();
    for (std::int64_t h = 0; h < layer.heads && !none; ++h) {
      const auto row = layer.window_weights(h, 1).select(1, 0).mean(0).contiguous();  // [N]
      const auto* weight = row.const_data_ptr<float>();
      for (const auto t : layer.head(h).token_indices) {
        auto& sum = of_token[t];
        sum.weight += *weight++;
        sum.heads += 1;
      }
    }
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h) {
      const auto head = layer.head(h);
      auto scores = at::zeros({head.entries()});
      auto* score = scores.mutable_data_ptr<float>();
      for (const auto t : head.token_indices) {
        const auto found = of_token.find(t);
        if (found != of_token.end())
          *score = static_cast<float>(found->second.weight / found->second.heads);
        ++score;
      }
      out.push_back(std::move(scores));
    }
    return out;
  }
};

void enrol(Registry& r) {
  r.add<KvStage, Tova>("tova", "entries score the last query's attention, of all heads together",
                       "tova-2024");
}

}  // namespace mneme::kv::tova
