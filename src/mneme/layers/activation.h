// Activations by the names that model configurations use.
#pragma once

#include "mneme/kernels/activation.h"

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// silu, gelu (exact), gelu_tanh, relu.
std::vector<std::string> activation_names();

/// The activation of that name; throws Error(usage) on an unknown one.
kernels::Activation activation_named(std::string_view name);

/// Applies the named activation; in place where no gradient needs x. Throws Error(usage) on an unknown name.
at::Tensor activate(std::string_view name, at::Tensor x);

}  // namespace mneme
