// Activations of a vector:
//
//   silu(x) = x / (1 + e^-x)      gelu(x) = x Phi(x), Phi the normal distribution function      relu(x) = max(x, 0)
//   gelu_tanh(x) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
#pragma once

#include "mneme/kernels/activation.h"
#include "mneme/kernels/simd.inl"

namespace mneme::kernels::MNEME_LEVEL {

// Phi(x) is 1/2 + x P(x^2) / Q(x^2) for |x| up to kFar, to 1e-7; constant term first. Beyond it is 0 or 1 as far as a
// number in single precision tells.
inline constexpr float kFar = 5.515f;
inline constexpr float kPhiP[6] = {0.398942232f,    0.0339307487f,  0.00468166219f,
                                   0.000169568186f, 6.35197921e-6f, 2.26537917e-8f};
inline constexpr float kPhiQ[6] = {
    1.f, 0.251717657f, 0.0286895819f, 0.00188865396f, 7.38586386e-5f, 1.19471156e-6f};

// 1 / x for numbers of ordinary size, to the last bits.
inline F reciprocal(F x) {
#if defined(__AVX512F__)
  const F y = _mm512_rcp14_ps(x);
  return y * (set1(2.f) - x * y);
#elif defined(__AVX2__)
  const F y = _mm256_rcp_ps(x);
  return y * (set1(2.f) - x * y);
#else
  return set1(1.f) / x;
#endif
}

inline F polynomial(const float (&coefficients)[6], F x) {
  F y = set1(coefficients[5]);
  for (int i = 4; i >= 0; --i) y = fma(y, x, set1(coefficients[i]));
  return y;
}

inline F silu(F x) { return x / (set1(1.f) + exp(zero() - x)); }
inline F gelu(F x) {
  const F near = max(set1(-kFar), min(set1(kFar), x)), square = near * near;
  const F slope = polynomial(kPhiP, square) * reciprocal(polynomial(kPhiQ, square));
  return x * fma(near, slope, set1(0.5f));
}
inline F gelu_tanh(F x) {
  const F twice = x * fma(x * x, set1(2 * 0.797884561f * 0.044715f), set1(2 * 0.797884561f));
  return x / (set1(1.f) + exp(zero() - twice));
}

// run(act), with the activation as a function of a vector.
template <class Run>
inline void with_activation(Activation activation, const Run& run) {
  switch (activation) {
    case Activation::none:
      return run([](F x) { return x; });
    case Activation::silu:
      return run([](F x) { return silu(x); });
    case Activation::gelu:
      return run([](F x) { return gelu(x); });
    case Activation::gelu_tanh:
      return run([](F x) { return gelu_tanh(x); });
    case Activation::relu:
      return run([](F x) { return max(zero(), x); });
  }
}

}  // namespace mneme::kernels::MNEME_LEVEL
