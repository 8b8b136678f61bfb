// silu(g) u = g u / (1 + e^-g), in one pass.
#pragma once

#include "mneme/kernels/simd.inl"

namespace mneme::kernels::MNEME_LEVEL {

inline F silu_multiply(F gate, F up) { return gate * up / (set1(1.f) + exp(zero() - gate)); }

inline void silu_multiply_all(const float* gate, const float* up, float* out, i64 n) noexcept {
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, silu_multiply(load(gate + i), load(up + i)));
  if (i < n) {
    const i64 rest = n - i;
    store_n(out + i, silu_multiply(load_n(gate + i, rest), load_n(up + i, rest)), rest);
  }
}

}  // namespace mneme::kernels::MNEME_LEVEL
