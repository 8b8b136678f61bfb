// LoRA: a low-rank update beside a frozen weight.
//
//   y = W x + (alpha / rank) B (A x)      A: [rank, in], B: [out, rank], B starts at zero
//
// source    Hu et al. 2021, arXiv:2106.09685
#pragma once

#include "mneme/core/params.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string_view>

namespace mneme {

class LoRA final : public Adapter {
 public:
  /// Fresh or loaded `<name>.lora_a` and `<name>.lora_b` of `params` for a weight [out, in]. Where both are frozen they
  /// are laid out for fused products in the number type that they have.
  LoRA(Params& params, std::string_view name, std::int64_t in, std::int64_t out, std::int64_t rank,
       double alpha);
  [[nodiscard]] at::Tensor apply(const at::Tensor& x, const at::Tensor& y) const override;
  [[nodiscard]] const LowRank* low_rank() const override {
    return fixed_.a != nullptr ? &fixed_ : nullptr;
  }

 private:
  void lay_out();

  LowRank fixed_;
  std::shared_ptr<Parameter> a_, b_;
  double scale_;
  at::Tensor fixed_a_, fixed_b_;  // what fixed_ points to
};

/// Attaches a LoRA of its own to every matrix of `model` whose name matches `glob`; their weights are made in
/// `adapters` under the matrix's name. Returns how many; throws Error(not_found) when none matches.
std::int64_t attach_lora(Params& model, std::string_view glob, Params& adapters, std::int64_t rank,
                         double alpha);

}  // namespace mneme
