// out = weight (v - mean v) / sqrt(var v + eps) + bias for v = x + addend, with the variance from the differences.
#pragma once

#include "mneme/kernels/simd.inl"

namespace mneme::kernels::MNEME_LEVEL {

inline void layer_norm(const float* x, const float* addend, const float* weight, const float* bias,
                       float eps, i64 width, float* out) noexcept {
  const i64 whole = width / kLanes * kLanes, rest = width - whole;
  const float n = static_cast<float>(width);
  F total = zero();
  for (i64 i = 0; i < whole; i += kLanes) {
    const F v = addend == nullptr ? load(x + i) : load(x + i) + load(addend + i);
    store(out + i, v);
    total = total + v;
  }
  if (rest > 0) {
    F v = load_n(x + whole, rest);
    if (addend != nullptr) v = v + load_n(addend + whole, rest);
    store_n(out + whole, v, rest);
    total = total + v;
  }
  const float mean = sum(total) / n;
  F squares = zero();
  for (i64 i = 0; i < whole; i += kLanes) {
    const F v = load(out + i) - set1(mean);
    squares = fma(v, v, squares);
  }
  float square = sum(squares);
  for (i64 i = whole; i < width; ++i) square += (out[i] - mean) * (out[i] - mean);
  const F scale = set1(1.f / __builtin_sqrtf(square / n + eps));
  for (i64 i = 0; i < whole; i += kLanes)
    store(out + i, fma((load(out + i) - set1(mean)) * scale, load(weight + i), load(bias + i)));
  if (rest > 0) {
    const F v = (load_n(out + whole, rest) - set1(mean)) * scale;
    store_n(out + whole, fma(v, load_n(weight + whole, rest), load_n(bias + whole, rest)), rest);
  }
}

}  // namespace mneme::kernels::MNEME_LEVEL
