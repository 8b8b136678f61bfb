// x <- x + addend;  out = weight x / sqrt(mean(x^2) + eps), a row at a time.
#pragma once

#include "mneme/kernels/simd.inl"

namespace mneme::kernels::MNEME_LEVEL {

inline void rms_norm(float* x, const float* addend, const float* weight, float eps, i64 width,
                     float* out) noexcept {
  F even = zero(), odd = zero();
  i64 i = 0;
  const auto take = [&](i64 at) {
    const F v = addend == nullptr ? load(x + at) : load(x + at) + load(addend + at);
    if (addend != nullptr) store(x + at, v);
    return v;
  };
  for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
    const F a = take(i), b = take(i + kLanes);
    even = fma(a, a, even);
    odd = fma(b, b, odd);
  }
  for (; i < width; i += kLanes) {
    const i64 n = smaller(kLanes, width - i);
    F v = load_n(x + i, n);
    if (addend != nullptr) {
      v = v + load_n(addend + i, n);
      store_n(x + i, v, n);
    }
    even = fma(v, v, even);
  }
  const F scale = set1(1.f / __builtin_sqrtf(sum(even + odd) / static_cast<float>(width) + eps));
  for (i = 0; i + kLanes <= width; i += kLanes)
    store(out + i, load(x + i) * scale * load(weight + i));
  if (i < width) {
    const i64 n = width - i;
    store_n(out + i, load_n(x + i, n) * scale * load_n(weight + i, n), n);
  }
}

}  // namespace mneme::kernels::MNEME_LEVEL
