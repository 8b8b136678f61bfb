// Layer norm of many rows.
#pragma once

#include <cstdint>

namespace mneme::kernels {

/// out = weight (v - mean v) / sqrt(var v + eps) + bias for every row of v = x + addend [rows,width]; `addend` may be null,
/// and out may be x or addend. Runs on all threads. Throws Error (invalid) on a negative size.
void layer_norm(const float* x, const float* addend, const float* weight, const float* bias,
                float eps, std::int64_t rows, std::int64_t width, float* out);

}  // namespace mneme::kernels
