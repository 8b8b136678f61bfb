// The gate of a gated linear unit.
#pragma once

#include <cstdint>

namespace mneme::kernels {

/// out_i = silu(gate_i) up_i = gate_i up_i / (1 + e^-gate_i) for n numbers, relative error below 1e-6; out may be gate or
/// up. Runs on all threads. Throws Error (invalid) where n is negative.
void silu_multiply(const float* gate, const float* up, float* out, std::int64_t n);

}  // namespace mneme::kernels
