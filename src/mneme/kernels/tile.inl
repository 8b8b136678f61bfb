// The innermost loop of products of matrices: a few rows against two vectors of columns, all sums in registers.
//
//   sums[r][v] += sum_s a[r][s] . b[s][v]      one step s is a number of f32 or a pair of bf16
#pragma once

#include "mneme/kernels/simd.inl"

#include <type_traits>

namespace mneme::kernels::MNEME_LEVEL {

inline constexpr i64 kTileColumns = 2 * kLanes;
#if defined(__AVX512F__)
inline constexpr int kTileRows = 12;  // 24 vectors of sums of 32
#else
inline constexpr int kTileRows = 6;  // 12 of 16
#endif

struct SingleSteps {
  static constexpr i64 kNumbers = 1;  // in a step
  using Step = F;
  static Step get(const u32* p) { return load(reinterpret_cast<const float*>(p)); }
  static Step broadcast(const u32* p) { return set1(read<float>(p)); }
  static F add(Step a, Step b, F sum) { return fma(a, b, sum); }
  // kLanes numbers one after another.
  static void put(u32* steps, i64 at, F v) { store(reinterpret_cast<float*>(steps) + at, v); }
  // kLanes steps of which each holds one of `even` and, if it holds two, one of `odd`.
  static void put_steps(u32* steps, F even, F) { store(reinterpret_cast<float*>(steps), even); }
  // 2^x, as exact as a number in a step.
  static F power(F x) { return exp2(x); }
};

#if defined(__AVX512BF16__)
struct PairSteps {
  static constexpr i64 kNumbers = 2;
  using Step = __m512i;
  static Step get(const u32* p) { return _mm512_loadu_si512(p); }
  static Step broadcast(const u32* p) { return _mm512_set1_epi32(read<int>(p)); }
  static F add(Step a, Step b, F sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static __m256i narrow(F v) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)); }
  static void put(u32* steps, i64 at, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(reinterpret_cast<u16*>(steps) + at), narrow(v));
  }
  static void put_steps(u32* steps, F even, F odd) {
    const __m512i low = _mm512_cvtepu16_epi32(narrow(even)),
                  high = _mm512_cvtepu16_epi32(narrow(odd));
    _mm512_storeu_si512(steps, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  static F power(F x) {
    x = max(set1(-200.f), x);  // keeps NaN
    const F n = round(x), f = x - n;
    const F low = fma(f, set1(0.693260988f), set1(0.999928074f)),
            high = fma(f, set1(0.0551716558f), set1(0.242611121f));
    return times_power_of_two(fma(f * f, high, low), n);  // relative error below 1e-4
  }
};
#endif

// Rows of `a` and steps of `b` are so many words apart.
template <class Steps, int kR, int kV>
inline void multiply_tile(const u32* a, i64 a_stride, const u32* b, i64 b_stride, i64 steps,
                          F (&sums)[kR][kV]) {
  for (int r = 0; r < kR; ++r) {
    for (int v = 0; v < kV; ++v) sums[r][v] = zero();
  }
  for (i64 s = 0; s < steps; ++s) {
    typename Steps::Step columns[kV];
    for (int v = 0; v < kV; ++v) columns[v] = Steps::get(b + s * b_stride + v * kLanes);
    for (int r = 0; r < kR; ++r) {
      const auto x = Steps::broadcast(a + r * a_stride + s);
      for (int v = 0; v < kV; ++v) sums[r][v] = Steps::add(x, columns[v], sums[r][v]);
    }
  }
}

// run(vectors, first) for n columns, two vectors at a time and the last one alone; their number is a constant.
template <class Run>
inline void by_columns(i64 n, const Run& run) {
  i64 i = 0;
  for (; i + kLanes < n; i += kTileColumns) run(std::integral_constant<int, 2>{}, i);
  if (i < n) run(std::integral_constant<int, 1>{}, i);
}

template <int kMost, class Run>
inline void with_rows(i64 rows, const Run& run) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return with_rows<kMost - 1>(rows, run);
  }
  run(std::integral_constant<int, kMost>{});
}

// run(rows, first) for `rows` rows in tiles of like size, at most kMost each; the number is a constant.
template <int kMost, class Run>
inline void in_tiles(i64 rows, const Run& run) {
  for (i64 m = 0; m < rows;) {
    const i64 left = rows - m, tiles = (left + kMost - 1) / kMost, n = (left + tiles - 1) / tiles;
    with_rows<kMost>(n, [&](auto constant) { run(constant, m); });
    m += n;
  }
}

}  // namespace mneme::kernels::MNEME_LEVEL
