// snapkv: what the last queries looked at, smoothed over neighbours; the tokens of these queries themselves stay.
//
//   s_j = red_g pool_{|n - j| <= pool/2} mean_i a_gin     i: the last `window` queries; n, j: entries before them
//   s_j = inf                                             entries of the window
//
// spec      snapkv(window=32, pool=5, pooling=mean, reduce=mean)
// holds     the last `window` queries
// cost      window x entries weights of each head when entries are dropped
// needs     the rows of the last `window` queries
// source    Li et al. 2024, arXiv:2404.14469 (pooling=mean as its code has it by default, max as its other form)
// departs   at the ends, the mean is taken of the neighbours that there are. Neighbours are those held now, whatever was
//           dropped between them
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"
#include "mneme/kv/query_group.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

namespace mneme::kv::snapkv {

class SnapKv final : public ScoreStage {
 public:
  struct Options {
    std::int64_t window = 32, pool = 5;
    std::string pooling = "mean", reduce = "mean";
  };
  static void describe(Describe& d, Options& o) {
    d("window", o.window, at_least(1), "last queries that say what matters, and stay");
    d("pool", o.pool,
      Check{[](const Field& f) {
              const auto x = **std::get_if<std::int64_t*>(&f);
              return x > 0 && x % 2 == 1;
            },
            "odd, at least 1"},
      "entries over which weights are smoothed");
    d("pooling", o.pooling, one_of({"mean", "max"}), "how they are smoothed");
    d("reduce", o.reduce, a_reduction(), "what query heads that share an entry make of it");
  }
  explicit SnapKv(const Options& o) : o_(o) {}

  [[nodiscard]] Needs needs() const override {
    Needs needs;
    needs.attention = AttentionLevel::last_rows;
    needs.query_window = o_.window;
    return needs;
  }

  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    const auto& positions = layer.query_positions();
    const auto w = std::min(o_.window, static_cast<std::int64_t>(positions.size()));
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h) {
      const auto head = layer.head(h);
      if (w == 0) {
        out.push_back(at::zeros({head.entries()}));
        continue;
      }
      const auto first = *(positions.end() - w);
      auto n = head.entries();  // before the window
      while (n > 0 && head.positions[static_cast<std::size_t>(n - 1)] >= first) --n;
      auto scores = at::full({head.entries()}, std::numeric_limits<float>::infinity());
      if (n > 0)
        scores.narrow(0, 0, n).copy_(
            over_group(pooled(layer.window_weights(h, w).narrow(2, 0, n).mean(1)), o_.reduce));
      out.push_back(std::move(scores));
    }
    return out;
  }

 private:
  /// Weights [G,n], each smoothed with its neighbours.
  [[nodiscard]] at::Tensor pooled(const at::Tensor& weights) const {
    const auto x = weights.unsqueeze(1);
    return (o_.pooling == "mean"
                ? at::avg_pool1d(x, o_.pool, 1, o_.pool / 2, false, /*count_include_pad=*/false)
                : at::max_pool1d(x, o_.pool, 1, o_.pool / 2))
        .squeeze(1);
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, SnapKv>("snapkv", "entries score what the last queries look at, smoothed",
                         "snapkv-2024");
}

}  // namespace mneme::kv::snapkv
