// keydiff: keys that point the way most keys point are told apart least, and go first.
//
//   s_j = -cos(k_j, m),   m = mean_j k_j / |k_j|     turned keys of what the head holds
//
// spec      keydiff()
// holds     nothing
// needs     keys
// source    Park et al. 2025, arXiv:2504.15364
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

namespace mneme::kv::keydiff {

class KeyDiff final : public ScoreStage {
 public:
  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    constexpr double kLeast = 1e-12;  // a key of zeros points nowhere and scores 0
    const auto unit = [](const at::Tensor& x) {
      return x / at::linalg_vector_norm(x, 2, at::IntArrayRef{-1}, true).clamp_min(kLeast);
    };
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h) {
      const auto keys = unit(layer.keys(h));
      out.push_back(at::mv(keys, unit(keys.mean(0))).neg());
    }
    return out;
  }
};

void enrol(Registry& r) {
  r.add<KvStage, KeyDiff>("keydiff", "entries whose keys are least like the mean key score high",
                          "keydiff-2025");
}

}  // namespace mneme::kv::keydiff
