#include "mneme/layers/activation.h"

#include "mneme/core/error.h"
#include "mneme/core/nearest.h"

#include <ATen/ATen.h>

#include <fmt/format.h>

namespace mneme {

std::vector<std::string> activation_names() { return {"silu", "gelu", "gelu_tanh", "relu"}; }

kernels::Activation activation_named(std::string_view name) {
  using enum kernels::Activation;
  if (name == "silu") return silu;
  if (name == "gelu") return gelu;
  if (name == "gelu_tanh") return gelu_tanh;
  if (name == "relu") return relu;
  throw Error(Errc::usage, fmt::format("unknown activation '{}'{}", name,
                                       did_you_mean(name, activation_names())));
}

at::Tensor activate(std::string_view name, at::Tensor x) {
  const bool in_place = !x.requires_grad();
  switch (activation_named(name)) {
    case kernels::Activation::none:
      break;
    case kernels::Activation::silu:
      return in_place ? at::silu_(x) : at::silu(x);
    case kernels::Activation::gelu:
      return in_place ? at::gelu_(x) : at::gelu(x);
    case kernels::Activation::gelu_tanh:
      return in_place ? at::gelu_(x, "tanh") : at::gelu(x, "tanh");
    case kernels::Activation::relu:
      return in_place ? at::relu_(x) : at::relu(x);
  }
  return x;
}

}  // namespace mneme
