// LoRA: a low-rank update beside a frozen weight.
//
//   y = W x + (alpha / rank) B (A x)      A: [rank, in], B: [out, rank], B starts at zero
//
// source    Hu et al. 2021, arXiv:2106.09685
#pragma once

#include "mneme/core/params.h"

#include <ATen/core/Tensor.h>

namespace mneme {

class LoRA final : public Adapter {
 public:
  /// Fresh or loaded `<name>.lora_a` and `<name>.lora_b` of `params` for a weight [out, in].
  LoRA(Params& params, std::string_view name, std::int64_t in, std::int64_t out, std::int64_t rank,
       double alpha);
  [[nodiscard]] at::Tensor apply(const at::Tensor& x, const at::Tensor& y) const override;

 private:
  std::shared_ptr<Parameter> a_, b_;
  double scale_;
};

/// Attaches a LoRA of its own to every matrix of `model` whose name matches `glob`; their weights are made in
/// `adapters` under the matrix's name. Returns how many; throws Error(not_found) when none matches.
std::int64_t attach_lora(Params& model, std::string_view glob, Params& adapters, std::int64_t rank,
                         double alpha);

}  // namespace mneme
