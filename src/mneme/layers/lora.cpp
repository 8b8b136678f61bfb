#include "mneme/layers/lora.h"

#include "mneme/core/error.h"
#include "mneme/kernels/low_rank.h"
#include "mneme/weights/weight_tensor.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <fmt/format.h>

namespace mneme {

LoRA::LoRA(Params& params, std::string_view name, std::int64_t in, std::int64_t out,
           std::int64_t rank, double alpha)
    : a_(params.weight(fmt::format("{}.lora_a", name), {rank, in})),
      b_(params.weight(fmt::format("{}.lora_b", name), {out, rank}, Init::zeros)),
      scale_(alpha / static_cast<double>(rank)) {
  if (a_->frozen && b_->frozen && rank > 0) lay_out();
}

void LoRA::lay_out() {
  const auto& a = a_->tensor;
  const auto& b = b_->tensor;
  const auto type = a.scalar_type() == b.scalar_type() && weight_type(a.scalar_type())
                        ? a.scalar_type()
                        : at::kFloat;
  const auto rank = b.size(1);
  fixed_a_ = a.detach().to(type).contiguous();
  const auto rows = b.detach().to(type).contiguous();
  fixed_b_ = at::empty({kernels::packed_low_rank_numbers(rows.size(0), rank)}, rows.options());
  kernels::pack_low_rank(*weight_type(type), rows.const_data_ptr(), rows.size(0), rank,
                         fixed_b_.mutable_data_ptr());
  fixed_ = {type,
            fixed_a_.size(1),
            rows.size(0),
            rank,
            static_cast<float>(scale_),
            fixed_a_.const_data_ptr(),
            fixed_b_.const_data_ptr()};
}

at::Tensor LoRA::apply(const at::Tensor& x, const at::Tensor& y) const {
  const auto type = x.scalar_type();
  const auto a = a_->tensor.to(type), b = b_->tensor.to(type);
  const auto t = at::mm(x.reshape({-1, x.size(-1)}), a.t());
  auto rows = y.reshape({-1, y.size(-1)});
  const bool recorded = c10::GradMode::is_enabled() &&
                        (rows.requires_grad() || t.requires_grad() || b.requires_grad());
  if (recorded || rows.scalar_type() != type || !rows.is_alias_of(y))
    return at::addmm(rows.to(type), t, b.t(), 1, scale_).view(y.sizes());
  return rows.addmm_(t, b.t(), 1, scale_).view(y.sizes());
}

std::int64_t attach_lora(Params& model, std::string_view glob, Params& adapters, std::int64_t rank,
                         double alpha) {
  std::int64_t attached = 0;
  for (const auto& name : model.names(glob)) {
    const auto parameter = model.find(name);
    const auto sizes = parameter->sizes();
    if (sizes.size() != 2) continue;
    parameter->adapters.push_back(
        std::make_shared<LoRA>(adapters, name, sizes[1], sizes[0], rank, alpha));
    ++attached;
  }
  if (attached == 0)
    throw Error(
        Errc::not_found,
        fmt::format("no matrix matches '{}': see the names of the model's parameters", glob));
  return attached;
}

}  // namespace mneme
