// kvzip: what the model needs to write a text down once more is what it needs of it, whatever will be asked.
//
//   s_n = max_{g,t} a_gtn     over the queries t of a second pass, which repeats the text in chunks behind a request for it,
//                             and the query heads g of the KV head; the softmax runs over the entries of the chunk
//                             repeated, the first `sinks` of the text and the second pass itself
//
// spec      kvzip()
// holds     a number per entry
// cost      a second reading of the prompt, when it is complete (models/reconstruct.h runs it)
// needs     the reconstruction; a stage that drops when the prompt is complete
// source    Kim et al. 2025, arXiv:2505.23416
// departs   the request stands outside any chat markup. The paper spreads what is kept over all heads of all layers,
//           `kvzip | adakv(floor=0, scope=model) | keep(...)`; here that is a stage apart, and may be another. Entries that
//           were no part of a prompt read again, such as an earlier reply's, count as much as those that were, on average
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

namespace mneme::kv::kvzip {

class KvZip final : public ScoreStage {
 public:
  [[nodiscard]] KvPhase phase() const override { return KvPhase::prefill_end; }
  [[nodiscard]] Needs needs() const override {
    Needs needs;
    needs.reconstruction = true;
    return needs;
  }

  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h) {
      const auto weights = layer.reconstruction_weights(h);
      const auto usual = at::nan_to_num(at::nanmean(weights)).item<double>();
      out.push_back(at::nan_to_num(weights, usual));
    }
    return out;
  }
};

void enrol(Registry& r) {
  r.add<KvStage, KvZip>("kvzip", "entries score what writing the prompt down again looks at",
                        "kvzip-2025");
}

}  // namespace mneme::kv::kvzip
