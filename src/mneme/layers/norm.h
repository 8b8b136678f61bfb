// Norms over the last dimension, in f32 whatever the products run in.
#pragma once

#include "mneme/core/params.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string_view>

namespace mneme {

/// y = x / sqrt(mean(x^2) + eps) * w    (Zhang & Sennrich 2019, arXiv:1910.07467)
class RMSNorm {
 public:
  RMSNorm(Params& params, std::string_view name, std::int64_t width, double eps);
  at::Tensor operator()(const at::Tensor& x) const;  ///< [..., width] -> the same sizes
  /// x <- x + addend, and the norm of that, in one pass where no gradient is recorded. With `in_place` x's own memory may
  /// be written to; the result may lie in the memory of `old`, if nobody else holds that.
  at::Tensor after_adding(at::Tensor& x, const at::Tensor& addend, bool in_place,
                          at::Tensor old = {}) const;

 private:
  [[nodiscard]] bool one_pass(const at::Tensor& x) const;
  std::shared_ptr<Parameter> weight_;
  double eps_;
};

/// y = (x - mean) / sqrt(var + eps) * w + b    (Ba et al. 2016, arXiv:1607.06450)
class LayerNorm {
 public:
  LayerNorm(Params& params, std::string_view name, std::int64_t width, double eps);
  at::Tensor operator()(const at::Tensor& x) const;  ///< [..., width] -> the same sizes
  /// The norm of x + addend, of the same sizes; in one pass where no gradient is recorded.
  at::Tensor of_sum(const at::Tensor& x, const at::Tensor& addend) const;

 private:
  std::shared_ptr<Parameter> weight_, bias_;
  double eps_;
};

}  // namespace mneme
