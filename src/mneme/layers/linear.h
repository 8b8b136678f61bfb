// Linear: y = x W' + b over a float or stored (quantized) weight, with adapters; differentiable in every form.
#pragma once

#include "mneme/core/call.h"
#include "mneme/core/params.h"
#include "mneme/kernels/activation.h"

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace mneme {

namespace kernels {
class NarrowMatrix;
}

class Linear {
 public:
  /// Of a few layers: as many as a mechanism has side by side are held without an allocation.
  using Tensors = c10::SmallVector<at::Tensor, 4>;

  /// The weight `<name>.weight` [out, in] of `params`, and `<name>.bias` [out] if asked for.
  Linear(Params& params, std::string_view name, std::int64_t in, std::int64_t out,
         bool bias = false);

  /// x [..., in] -> [..., out] in f32. Where a gradient is wanted a stored weight is dequantized by tiles, forward and
  /// backward, in the number type of x unless the call says bf16, and only dX is computed. Otherwise few rows take the
  /// fused kernel on the weight as stored, quantized ones with x rounded to 8 bits unless the call says f32 or bf16, or to
  /// 16 where it says q16, and many rows one product in the compute type of the call; a plain weight is rounded to that
  /// type once and kept so, where the CPU gains by it. Low-rank adapters whose numbers are fixed are part of these products;
  /// all others apply one after another. Throws Error(invalid) where x has another width, Error(mismatch) for an adapter of
  /// another matrix.
  at::Tensor operator()(const at::Tensor& x, const Call& call) const;

  /// The named activation of the same, in one pass where no gradient is recorded and the weight is kept rounded.
  at::Tensor activated(const at::Tensor& x, std::string_view activation, const Call& call) const;

  /// The outputs of several layers that share an input, in order; for few rows in one run of the fused kernel.
  static Tensors together(at::ArrayRef<const Linear*> layers, const at::Tensor& x,
                          const Call& call);

  [[nodiscard]] std::int64_t in() const { return in_; }
  [[nodiscard]] std::int64_t out() const { return out_; }

 private:
  void check(const at::Tensor& x) const;
  void count(const at::Tensor& x, const Call& call) const;
  [[nodiscard]] const kernels::NarrowMatrix* narrow(const at::Tensor& x, const Call& call) const;
  /// act(x W' + b) of layers that all have rounded copies of one form for this product; else nothing.
  [[nodiscard]] static Tensors narrow_products(at::ArrayRef<const Linear*> layers,
                                               const at::Tensor& x, kernels::Activation activation,
                                               const Call& call);
  [[nodiscard]] at::Tensor finish(const at::Tensor& x, at::Tensor y, std::size_t applied) const;

  std::int64_t in_, out_;
  std::shared_ptr<Parameter> weight_, bias_;
};

/// x [M, in] times the transpose of a parameter [out, in]: what Linear does before bias and adapters. Also used for
/// output heads tied to an embedding.
at::Tensor product(const at::Tensor& x, const Parameter& weight, Compute compute);

/// The number type that products of `rows` rows run in: bf16 only where the CPU multiplies it fast.
at::ScalarType product_type(Compute compute);

}  // namespace mneme
