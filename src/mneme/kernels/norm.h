// Normalization of rows.
#pragma once

#include <cstdint>

namespace mneme::kernels {

/// For each of `rows` rows of `width` numbers
///   x <- x + addend (left out where addend is null),   out = weight x / sqrt(mean(x^2) + eps)
/// so that a residual stream is added to and normalized in one pass; out may be x where there is no addend. weight [width].
/// Runs on all threads. Throws Error (invalid) on a negative shape.
void rms_norm(float* x, const float* addend, const float* weight, float eps, std::int64_t rows,
              std::int64_t width, float* out);

/// out = weight (v - mean v) / sqrt(var v + eps) + bias for every row of v = x + addend [rows,width]; `addend` may be null,
/// and out may be x or addend. Runs on all threads. Throws Error (invalid) on a negative size.
void layer_norm(const float* x, const float* addend, const float* weight, const float* bias,
                float eps, std::int64_t rows, std::int64_t width, float* out);

}  // namespace mneme::kernels
