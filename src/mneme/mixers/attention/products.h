// What attention multiplies numbers as, by what a pass is told.
#pragma once

#include "mneme/core/call.h"
#include "mneme/kernels/attend.h"

namespace mneme {

/// Rounded where the CPU multiplies that faster, unless the pass keeps single precision.
[[nodiscard]] constexpr kernels::Products attention_products(Compute compute) noexcept {
  return keeps_f32(compute) ? kernels::Products::f32 : kernels::Products::bf16;
}

}  // namespace mneme
