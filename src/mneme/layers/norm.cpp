#include "mneme/layers/norm.h"

#include "mneme/kernels/layer_norm.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <fmt/format.h>

namespace mneme {

RMSNorm::RMSNorm(Params& params, std::string_view name, std::int64_t width, double eps)
    : weight_(params.weight(fmt::format("{}.weight", name), {width}, Init::ones)), eps_(eps) {}

at::Tensor RMSNorm::operator()(const at::Tensor& x) const {
  const bool plain =
      x.scalar_type() != at::kFloat ||
      (c10::GradMode::is_enabled() && (x.requires_grad() || weight_->tensor.requires_grad()));
  if (plain) return x * at::rsqrt(x.square().mean(-1, true) + eps_) * weight_->tensor;
  // Five ATen passes over a single token cost more than the arithmetic, so inference takes one loop.
  const auto in = x.contiguous();
  auto out = at::empty_like(in);
  const auto D = in.size(-1), rows = in.numel() / D;
  const auto* w = weight_->tensor.const_data_ptr<float>();
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto* __restrict from = in.const_data_ptr<float>() + r * D;
    auto* __restrict to = out.mutable_data_ptr<float>() + r * D;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < D; ++i) sum += from[i] * from[i];
    const auto scale = 1.0f / std::sqrt(sum / static_cast<float>(D) + static_cast<float>(eps_));
#pragma omp simd
    for (std::int64_t i = 0; i < D; ++i) to[i] = from[i] * scale * w[i];
  }
  return out;
}

LayerNorm::LayerNorm(Params& params, std::string_view name, std::int64_t width, double eps)
    : weight_(params.weight(fmt::format("{}.weight", name), {width}, Init::ones)),
      bias_(params.weight(fmt::format("{}.bias", name), {width}, Init::zeros)),
      eps_(eps) {}

at::Tensor LayerNorm::operator()(const at::Tensor& x) const {
  return at::layer_norm(x, {x.size(-1)}, weight_->tensor.to(x.scalar_type()),
                        bias_->tensor.to(x.scalar_type()), eps_);
}

at::Tensor LayerNorm::of_sum(const at::Tensor& x, const at::Tensor& addend) const {
  const auto plain = [](const at::Tensor& t) {
    return t.scalar_type() == at::kFloat && t.is_cpu() &&
           !(c10::GradMode::is_enabled() && t.requires_grad());
  };
  if (!plain(x) || !plain(addend) || !plain(weight_->tensor) || !plain(bias_->tensor) ||
      x.sizes() != addend.sizes()) {
    return (*this)(x + addend);
  }
  const auto left = x.contiguous(), right = addend.contiguous();
  auto out = at::empty_like(left);
  const auto D = left.size(-1);
  kernels::layer_norm(left.const_data_ptr<float>(), right.const_data_ptr<float>(),
                      weight_->tensor.const_data_ptr<float>(),
                      bias_->tensor.const_data_ptr<float>(), static_cast<float>(eps_),
                      left.numel() / D, D, out.mutable_data_ptr<float>());
  return out;
}

}  // namespace mneme
