#include "mneme/layers/lora.h"

#include "mneme/core/error.h"

#include <ATen/ATen.h>

#include <fmt/format.h>

namespace mneme {

LoRA::LoRA(Params& params, std::string_view name, std::int64_t in, std::int64_t out,
           std::int64_t rank, double alpha)
    : a_(params.weight(fmt::format("{}.lora_a", name), {rank, in})),
      b_(params.weight(fmt::format("{}.lora_b", name), {out, rank}, Init::zeros)),
      scale_(alpha / static_cast<double>(rank)) {}

at::Tensor LoRA::apply(const at::Tensor& x, const at::Tensor& y) const {
  return y + scale_ * at::matmul(at::matmul(x, a_->tensor.t()), b_->tensor.t());
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
