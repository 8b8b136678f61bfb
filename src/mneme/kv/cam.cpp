// cam: values of entries that go are folded into the next ones that stay, by a lot that favours what was attended to.
//
//   v_n <- v_n + b_j v_j / m     for the next m <= window entries n that stay behind a dropped entry j
//   b_j ~ Bernoulli(min(1, c_j / mean_n c_n))     c: column sums, mean over the query heads of the KV head
//
// spec      cam(window=32, seed=0)
// holds     a sum per entry and query head
// needs     column sums
// source    Zhang et al. 2024, "CaM: Cache Merging for Memory-efficient LLMs Inference" (ICML)
// departs   all entries that go at once are folded, each by a lot of its own; the paper folds one at every step
#include "mneme/core/generator.h"
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace mneme::kv::cam {

class Cam final : public MergeStage {
 public:
  struct Options {
    std::int64_t window = 32, seed = 0;
  };
  static void describe(Describe& d, Options& o) {
    d("window", o.window, at_least(1), "entries that share what a dropped one held");
    d("seed", o.seed, "of the lots");
  }
  explicit Cam(const Options& o) : o_(o) {}

  [[nodiscard]] Needs needs() const override {
    Needs needs;
    needs.attention = AttentionLevel::column_sums;
    return needs;
  }

  void merge(const LayerView& layer, std::int64_t h, const std::vector<std::int64_t>& keep,
             at::Tensor& /*keys*/, at::Tensor& values) const override {
    const auto head = layer.head(h);
    const auto received = layer.column_sums(h).mean(0).contiguous();
    const auto all = layer.values(h).contiguous();
    values = values.contiguous();
    const auto* sum = received.const_data_ptr<float>();
    const auto lots = Generator(static_cast<std::uint64_t>(o_.seed))
                          .split(static_cast<std::uint64_t>(layer.layer))
                          .split(static_cast<std::uint64_t>(h));
    const auto V = values.size(1);
    auto next = keep.begin();
    for (std::int64_t j = 0; j < head.entries(); ++j) {
      if (next != keep.end() && *next == j) {
        ++next;
        continue;
      }
      const auto m = std::min<std::int64_t>(o_.window, keep.end() - next);
      if (m == 0) break;
      double mean = 0;
      for (std::int64_t i = 0; i < m; ++i) mean += sum[next[i]] / static_cast<double>(m);
      const auto lot =
          lots.split(static_cast<std::uint64_t>(head.token_indices[static_cast<std::size_t>(j)]))
              .uniform();
      if (!(lot * mean < sum[j])) continue;
      const auto* from = all.const_data_ptr<float>() + j * V;
      auto* to = values.mutable_data_ptr<float>() + (next - keep.begin()) * V;
      const auto part = 1.0F / static_cast<float>(m);
      for (std::int64_t i = 0; i < m; ++i, to += V) {
        for (std::int64_t d = 0; d < V; ++d) to[d] += part * from[d];
      }
    }
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Cam>("cam", "values that go are folded into the next ones that stay", "cam-2024");
}

}  // namespace mneme::kv::cam
