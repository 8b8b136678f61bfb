// k_norm: keys of a small norm are attended to most.
//
//   s_j = -|k_j|
//
// spec      k_norm()
// holds     nothing
// needs     keys
// source    Devoto et al. 2024, arXiv:2406.11430
// departs   the paper leaves the first two layers whole, where norms tell little: here all layers are cut alike
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

namespace mneme::kv::k_norm {

class KNorm final : public ScoreStage {
 public:
  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h)
      out.push_back(at::linalg_vector_norm(layer.keys(h), 2, at::IntArrayRef{-1}).neg());
    return out;
  }
};

void enrol(Registry& r) {
  r.add<KvStage, KNorm>("k_norm", "entries of small keys score high", "k-norm-2024");
}

}  // namespace mneme::kv::k_norm
