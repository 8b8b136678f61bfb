// adakv: the heads of a layer, or of the whole model, compete for what they may keep together.
//
//   B_h = L_h + #{ entries of head h among the best of all heads, each head's best L_h aside },   sum_h B_h = H each
//   L_h = min(N_h, max(floor each, entries that stay whatever their scores))
//
// spec      adakv(floor=0.2, scope=layer)
// holds     as many entries in the mean over a layer's heads, or the model's, as an equal share would
// needs     scores; without any, shares are equal. scope=model: scores that mean the same in all layers, such as weights of
//           attention, and a stage that drops when the prompt is complete
// source    Feng et al. 2024, arXiv:2407.11550; scope=model as in Kim et al. 2025, arXiv:2505.23416
// departs   entries that the evicting stage protects count as the best of their head
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <tuple>

namespace mneme::kv::adakv {

class AdaKv final : public BudgetStage {
 public:
  struct Options {
    double floor = 0.2;
    std::string scope = "layer";
  };
  static void describe(Describe& d, Options& o) {
    d("floor", o.floor, within(0, 1), "part of an equal share that every head keeps");
    d("scope", o.scope, one_of({"layer", "model"}), "whose heads share what they keep");
  }
  explicit AdaKv(const Options& o) : o_(o) {}

  [[nodiscard]] KvScope scope() const override {
    return over_layers() ? KvScope::model : KvScope::layer;
  }
  [[nodiscard]] bool over_layers() const override { return o_.scope == "model"; }

  [[nodiscard]] std::vector<std::int64_t> of_heads(const LayerView& layer,
                                                   const std::vector<at::Tensor>& scores,
                                                   std::int64_t each,
                                                   std::int64_t floor) const override {
    if (scores.empty())
      return std::vector<std::int64_t>(static_cast<std::size_t>(layer.heads), each);
    return shared(scores, each, floor);
  }
  [[nodiscard]] std::vector<std::int64_t> of_model(const std::vector<at::Tensor>& scores,
                                                   std::int64_t each,
                                                   std::int64_t floor) const override {
    return shared(scores, each, floor);
  }

 private:
  [[nodiscard]] std::vector<std::int64_t> shared(const std::vector<at::Tensor>& scores,
                                                 std::int64_t each, std::int64_t floor) const {
    std::vector<std::int64_t> out(scores.size(), each);
    const auto share =
        std::max(floor, static_cast<std::int64_t>(o_.floor * static_cast<double>(each)));
    auto left = static_cast<std::int64_t>(out.size()) * each;
    std::vector<std::vector<float>> ranked(out.size());
    for (std::size_t h = 0; h < out.size(); ++h) {
      const auto x = scores[h].to(at::kCPU, at::kFloat).contiguous();
      auto& of_head = ranked[h];
      of_head.assign(x.const_data_ptr<float>(), x.const_data_ptr<float>() + x.numel());
      for (auto& score : of_head) {
        if (std::isnan(score)) score = -std::numeric_limits<float>::infinity();
      }
      std::sort(of_head.begin(), of_head.end(), std::greater<>());
      left -= std::min(share, x.numel());
    }
    if (left < 0) return out;
    using Candidate = std::tuple<float, std::int64_t, std::size_t>;  // -score, rank, head
    std::vector<Candidate> candidates;
    for (std::size_t h = 0; h < out.size(); ++h) {
      const auto N = static_cast<std::int64_t>(ranked[h].size());
      out[h] = std::min(share, N);
      for (auto rank = out[h]; rank < N; ++rank)
        candidates.emplace_back(-ranked[h][static_cast<std::size_t>(rank)], rank, h);
    }
    left = std::min(left, static_cast<std::int64_t>(candidates.size()));
    std::nth_element(candidates.begin(), candidates.begin() + left, candidates.end());
    for (std::int64_t i = 0; i < left; ++i)
      ++out[std::get<2>(candidates[static_cast<std::size_t>(i)])];
    return out;
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, AdaKv>("adakv",
                        "the heads of a layer, or of all, compete for what they keep together",
                        "adakv-2024");
}

}  // namespace mneme::kv::adakv
