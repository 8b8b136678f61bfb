// Norms of a row v = x + addend:
//   rms_norm    x <- v,  out = weight v / sqrt(mean(v^2) + eps)
//   layer_norm  out = weight (v - mean v) / sqrt(var v + eps) + bias, with the variance from the differences
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
