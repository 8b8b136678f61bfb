#include "mneme/layers/activation.h"

#include "mneme/core/error.h"
#include "mneme/core/nearest.h"

#include <ATen/ATen.h>

#include <fmt/format.h>

namespace mneme {

std::vector<std::string> activation_names() { return {"silu", "gelu", "gelu_tanh", "relu"}; }

at::Tensor activate(std::string_view name, at::Tensor x) {
  const bool in_place = !x.requires_grad();
  if (name == "silu") return in_place ? at::silu_(x) : at::silu(x);
  if (name == "gelu") return in_place ? at::gelu_(x) : at::gelu(x);
  if (name == "gelu_tanh") return in_place ? at::gelu_(x, "tanh") : at::gelu(x, "tanh");
  if (name == "relu") return in_place ? at::relu_(x) : at::relu(x);
  throw Error(Errc::usage, fmt::format("unknown activation '{}'{}", name,
                                       did_you_mean(name, activation_names())));
}

}  // namespace mneme
