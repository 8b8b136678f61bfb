#include "mneme/layers/norm.h"

#include "mneme/core/read_ahead.h"
#include "mneme/core/unwritten.h"
#include "mneme/kernels/norm.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <fmt/format.h>

namespace mneme {

namespace {

/// The numbers of a tensor whose type one_pass() has looked at: asking by type looks again, which takes as long as the norm
/// of a short row.
const float* numbers(const at::Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }
float* numbers_to_write(const at::Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

/// Memory for a result of these sizes: that of `old` where nobody else holds it.
at::Tensor result(at::Tensor old, at::IntArrayRef sizes) {
  const bool fits = old.defined() && held_alone(old) && old.is_cpu() &&
                    old.scalar_type() == at::kFloat && old.is_contiguous() &&
                    old.sizes() == sizes && old.storage().use_count() == 1 && !old.requires_grad();
  return fits ? std::move(old) : at::Tensor(unwritten(sizes));
}

}  // namespace

RMSNorm::RMSNorm(Params& params, std::string_view name, std::int64_t width, double eps)
    : weight_(params.weight(fmt::format("{}.weight", name), {width}, Init::ones)), eps_(eps) {}

bool RMSNorm::one_pass(const at::Tensor& x) const {
  read_ahead.note(weight_.get());
  read_ahead.note(weight_->tensor.unsafeGetTensorImpl());
  return x.scalar_type() == at::kFloat && x.is_cpu() &&
         weight_->tensor.scalar_type() == at::kFloat &&
         !(c10::GradMode::is_enabled() && (x.requires_grad() || weight_->tensor.requires_grad()));
}

at::Tensor RMSNorm::operator()(const at::Tensor& x) const {
  if (!one_pass(x)) return x * at::rsqrt(x.square().mean(-1, true) + eps_) * weight_->tensor;
  const auto in = x.contiguous();
  at::Tensor out = unwritten(in.sizes());
  const auto D = in.size(-1);
  kernels::rms_norm(const_cast<float*>(numbers(in)), nullptr, numbers(weight_->tensor),
                    static_cast<float>(eps_), in.numel() / D, D, numbers_to_write(out));
  return out;
}

at::Tensor RMSNorm::after_adding(at::Tensor& x, const at::Tensor& addend, bool in_place,
                                 at::Tensor old) const {
  const bool fused = in_place && one_pass(x) && one_pass(addend) && x.is_contiguous() &&
                     addend.is_contiguous() && x.sizes() == addend.sizes();
  if (!fused) {
    x = x + addend;
    return (*this)(x);
  }
  auto out = result(std::move(old), x.sizes());
  const auto D = x.size(-1);
  kernels::rms_norm(numbers_to_write(x), numbers(addend), numbers(weight_->tensor),
                    static_cast<float>(eps_), x.numel() / D, D, numbers_to_write(out));
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
