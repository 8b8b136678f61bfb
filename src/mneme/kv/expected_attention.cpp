// expected_attention: what queries that are still to come will look at, if they go on as the last ones.
//
//   q ~ N(m, S)   of the last `window` queries, turned back;   R = mean rotation of the next `future` positions
//   z_gj = scale m'R'k_j + scale^2 k_j'R S R'k_j / 2,   a_gj = exp z_gj / sum_n exp z_gn
//   s_j  = red_g a_gj |v_j|
//
// spec      expected_attention(window=64, future=512, covariance=true, reduce=mean)
// holds     the last `window` queries
// cost      O(N K^2) a query head when entries are dropped
// needs     the last `window` queries; no weights
// source    Devoto et al. 2025, arXiv:2510.00636
// departs   m and S are those of the last queries, not of the whole prompt's; the first tokens are scored as all others
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"
#include "mneme/kv/query_group.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace mneme::kv::expected_attention {

class ExpectedAttention final : public ScoreStage {
 public:
  struct Options {
    std::int64_t window = 64, future = 512;
    bool covariance = true;
    std::string reduce = "mean";
  };
  static void describe(Describe& d, Options& o) {
    d("window", o.window, at_least(1), "last queries that tell what others will be like");
    d("future", o.future, at_least(1), "positions that are still to come");
    d("covariance", o.covariance, "queries vary; else all are like the mean");
    d("reduce", o.reduce, a_reduction(), "what query heads that share an entry make of it");
  }
  explicit ExpectedAttention(const Options& o) : o_(o) {}

  [[nodiscard]] Needs needs() const override {
    Needs needs;
    needs.query_window = o_.window;
    return needs;
  }

  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    const auto& positions = layer.query_positions();
    const auto w = std::min(o_.window, static_cast<std::int64_t>(positions.size()));
    std::vector<std::int64_t> back(positions.end() - w, positions.end());
    for (auto& position : back) position = -position;
    at::Tensor onward;  // [K,K] row i: where the mean rotation takes unit vector i
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h) {
      if (w == 0) {
        out.push_back(at::zeros({layer.head(h).entries()}));
        continue;
      }
      const auto all = layer.queries(h), queries = all.narrow(1, all.size(1) - w, w);
      if (!onward.defined()) onward = mean_rotation(layer, queries.size(2), positions.back());
      const auto keys = layer.keys(h);
      std::vector<at::Tensor> of_heads;
      for (const auto& turned : queries.unbind(0)) {
        const auto q = layer.turned(turned, back);
        const auto mean = q.mean(0, true);
        auto z = at::mv(keys, at::mv(onward.t(), mean.squeeze(0))) * layer.scale;
        if (o_.covariance) {
          const auto spread = at::mm(q - mean, onward);  // [w,K]
          const auto S = at::mm(spread.t(), spread) / static_cast<double>(w);
          z = z + (at::mm(keys, S) * keys).sum(1) * (layer.scale * layer.scale / 2);
        }
        of_heads.push_back(z.softmax(0));
      }
      out.push_back(over_group(at::stack(of_heads), o_.reduce) *
                    at::linalg_vector_norm(layer.values(h), 2, at::IntArrayRef{-1}));
    }
    return out;
  }

 private:
  [[nodiscard]] at::Tensor mean_rotation(const LayerView& layer, std::int64_t K,
                                         std::int64_t last) const {
    const auto units = at::eye(K).unsqueeze(0).expand({o_.future, K, K});
    std::vector<std::int64_t> positions;
    for (std::int64_t f = 1; f <= o_.future; ++f)
      positions.insert(positions.end(), static_cast<std::size_t>(K), last + f);
    return layer.turned(units.reshape({o_.future * K, K}), positions)
        .view({o_.future, K, K})
        .mean(0);
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, ExpectedAttention>("expected_attention",
                                    "entries score what queries to come will look at",
                                    "expected-attention-2025");
}

}  // namespace mneme::kv::expected_attention
