#include "mneme/layers/norm.h"

#include "mneme/kernels/norm.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <c10/core/GradMode.h>

#include <fmt/format.h>

namespace mneme {

RMSNorm::RMSNorm(Params& params, std::string_view name, std::int64_t width, double eps)
    : weight_(params.weight(fmt::format("{}.weight", name), {width}, Init::ones)), eps_(eps) {}

bool RMSNorm::one_pass(const at::Tensor& x) const {
  return x.scalar_type() == at::kFloat && x.is_cpu() &&
         !(c10::GradMode::is_enabled() && (x.requires_grad() || weight_->tensor.requires_grad()));
}

at::Tensor RMSNorm::operator()(const at::Tensor& x) const {
  if (!one_pass(x)) return x * at::rsqrt(x.square().mean(-1, true) + eps_) * weight_->tensor;
  const auto in = x.contiguous();
  at::Tensor out = at::detail::empty_cpu(in.sizes(), at::kFloat);
  const auto D = in.size(-1);
  kernels::rms_norm(const_cast<float*>(in.const_data_ptr<float>()), nullptr,
                    weight_->tensor.const_data_ptr<float>(), static_cast<float>(eps_),
                    in.numel() / D, D, out.mutable_data_ptr<float>());
  return out;
}

at::Tensor RMSNorm::after_adding(at::Tensor& x, const at::Tensor& addend, bool in_place) const {
  const bool fused = in_place && one_pass(x) && one_pass(addend) && x.is_contiguous() &&
                     addend.is_contiguous() && x.sizes() == addend.sizes();
  if (!fused) {
    x = x + addend;
    return (*this)(x);
  }
  at::Tensor out = at::detail::empty_cpu(x.sizes(), at::kFloat);
  const auto D = x.size(-1);
  kernels::rms_norm(x.mutable_data_ptr<float>(), addend.const_data_ptr<float>(),
                    weight_->tensor.const_data_ptr<float>(), static_cast<float>(eps_),
                    x.numel() / D, D, out.mutable_data_ptr<float>());
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
