// Activations that kernels apply to what they give.
#pragma once

#include <cstdint>

namespace mneme::kernels {

enum class Activation : std::uint8_t { none, silu, gelu, gelu_tanh, relu };

}  // namespace mneme::kernels
