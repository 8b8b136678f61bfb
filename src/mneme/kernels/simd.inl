// One vector of floats per level: F holds kLanes of them. Everything here is internal to one level's namespace, so no
// inline body can carry that level's instructions into other code. Tails are read and written by the *_n forms, which
// touch exactly n elements (0 <= n <= kLanes) and read the rest as zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
// GCC 12 takes the deliberately undefined operands of its own intrinsics for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "mneme/kernels/kernel_table.h"

namespace mneme::kernels::MNEME_LEVEL {

using i64 = std::int64_t;
using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;

#if defined(__AVX512F__)

using F = __m512;
inline constexpr int kLanes = 16;

inline __mmask16 first(i64 n) { return static_cast<__mmask16>((1U << n) - 1U); }
inline F zero() { return _mm512_setzero_ps(); }
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load_n(const float* p, i64 n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline void store_n(float* p, F v, i64 n) { _mm512_mask_storeu_ps(p, first(n), v); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }  // b where either is NaN
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F abs(F a) { return _mm512_abs_ps(a); }
inline F round(F a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline F times_power_of_two(F a, F n) { return _mm512_scalef_ps(a, n); }  // n integral
inline float sum(F a) { return _mm512_reduce_add_ps(a); }
inline float largest(F a) { return _mm512_reduce_max_ps(a); }
inline float smallest(F a) { return _mm512_reduce_min_ps(a); }
inline bool any_above(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
inline F load_f16(const u16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F load_f16_n(const u16* p, i64 n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
}
inline F widen_bf16(__m256i h) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
inline F load_bf16(const u16* p) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F load_bf16_n(const u16* p, i64 n) {
  return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p));
}
inline __m256i narrow_f16(F v) {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline void store_f16(u16* p, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_f16(v));
}
inline void store_f16_n(u16* p, F v, i64 n) {
  _mm256_mask_storeu_epi16(p, first(n), narrow_f16(v));
}
// The instruction for this flushes subnormal numbers; the integer form gives the same bits at every level.
inline __m256i narrow_bf16(F v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}
inline void store_bf16(u16* p, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(v));
}
inline void store_bf16_n(u16* p, F v, i64 n) {
  _mm256_mask_storeu_epi16(p, first(n), narrow_bf16(v));
}
inline F widen_u8(__m128i b) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(b)); }
inline F load_u8(const u8* p) {
  return widen_u8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// kLanes / 2 bytes: of each the low nibble, then the high one.
inline F load_u4(const u8* p) {
  const __m128i wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return widen_u8(_mm_and_si128(_mm_or_si128(wide, _mm_slli_epi16(wide, 4)), _mm_set1_epi8(0x0f)));
}
// Rounds to the nearest integer, ties to even; v within [0, 255].
inline void store_u8(u8* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(v)));
}

#elif defined(__AVX2__)

using F = __m256;
inline constexpr int kLanes = 8;

inline __m256i first(i64 n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline F zero() { return _mm256_setzero_ps(); }
inline F set1(float x) { return _mm256_set1_ps(x); }
inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline F load_n(const float* p, i64 n) { return _mm256_maskload_ps(p, first(n)); }
inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline void store_n(float* p, F v, i64 n) { _mm256_maskstore_ps(p, first(n), v); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }  // b where either is NaN
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
inline F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// n integral within [-252, 252]: two factors, so that neither leaves the range of exponents.
inline F times_power_of_two(F a, F n) {
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  const __m256i rest = _mm256_sub_epi32(whole, half), bias = _mm256_set1_epi32(127);
  const F x = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const F y = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return a * x * y;
}
inline float sum(F a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float largest(F a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline float smallest(F a) {
  __m128 s = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_min_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_min_ss(s, _mm_movehdup_ps(s)));
}
inline bool any_above(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
inline __m128i load_u16_n(const u16* p, i64 n) {
  alignas(16) u16 whole[8] = {};
  std::memcpy(whole, p, static_cast<std::size_t>(n) * sizeof(u16));
  return _mm_load_si128(reinterpret_cast<const __m128i*>(whole));
}
inline void store_u16_n(u16* p, __m128i v, i64 n) {
  alignas(16) u16 whole[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(whole), v);
  std::memcpy(p, whole, static_cast<std::size_t>(n) * sizeof(u16));
}
inline F load_f16(const u16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F load_f16_n(const u16* p, i64 n) { return _mm256_cvtph_ps(load_u16_n(p, n)); }
inline F widen_bf16(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
inline F load_bf16(const u16* p) {
  return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F load_bf16_n(const u16* p, i64 n) { return widen_bf16(load_u16_n(p, n)); }
inline __m128i narrow_f16(F v) {
  return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline void store_f16(u16* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_f16(v));
}
inline void store_f16_n(u16* p, F v, i64 n) { store_u16_n(p, narrow_f16(v), n); }
inline __m128i narrow_bf16(F v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
}
inline void store_bf16(u16* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bf16(v));
}
inline void store_bf16_n(u16* p, F v, i64 n) { store_u16_n(p, narrow_bf16(v), n); }
inline F widen_u8(__m128i b) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b)); }
inline F load_u8(const u8* p) {
  return widen_u8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline F load_u4(const u8* p) {
  std::int32_t four;
  std::memcpy(&four, p, sizeof four);
  const __m128i wide = _mm_cvtepu8_epi16(_mm_cvtsi32_si128(four));
  return widen_u8(_mm_and_si128(_mm_or_si128(wide, _mm_slli_epi16(wide, 4)), _mm_set1_epi8(0x0f)));
}
inline void store_u8(u8* p, F v) {
  const __m256i q = _mm256_cvtps_epi32(v);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}

#else

// Vectors of four in the compiler's own notation, which every architecture has.
using F = float __attribute__((vector_size(16)));
using I = std::int32_t __attribute__((vector_size(16)));
inline constexpr int kLanes = 4;

inline F zero() { return F{}; }
inline F set1(float x) { return F{x, x, x, x}; }
inline I set1i(std::int32_t x) { return I{x, x, x, x}; }
inline F load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline F load_n(const float* p, i64 n) {
  F v{};
  std::memcpy(&v, p, static_cast<std::size_t>(n) * sizeof(float));
  return v;
}
inline void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
inline void store_n(float* p, F v, i64 n) {
  std::memcpy(p, &v, static_cast<std::size_t>(n) * sizeof(float));
}
inline F fma(F a, F b, F c) { return a * b + c; }
inline F max(F a, F b) { return a > b ? a : b; }  // b where either is NaN
inline F min(F a, F b) { return a < b ? a : b; }
inline I bits_of(F v) {
  I b;
  std::memcpy(&b, &v, sizeof b);
  return b;
}
inline F floats_of(I b) {
  F v;
  std::memcpy(&v, &b, sizeof v);
  return v;
}
inline F abs(F a) { return floats_of(bits_of(a) & set1i(0x7fffffff)); }
// To the nearest, ties to even, for |a| < 2^22: there the sum has no room for a fraction.
inline F round(F a) {
  const F shift = set1(12582912.f);
  return (a + shift) - shift;
}
inline F times_power_of_two(F a, F n) {
  const I whole = __builtin_convertvector(n, I), half = whole >> 1, rest = whole - half;
  return a * floats_of((half + 127) << 23) * floats_of((rest + 127) << 23);
}
inline float sum(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
inline float largest(F a) {
  const float x = a[0] > a[1] ? a[0] : a[1], y = a[2] > a[3] ? a[2] : a[3];
  return x > y ? x : y;
}
inline float smallest(F a) {
  const float x = a[0] < a[1] ? a[0] : a[1], y = a[2] < a[3] ? a[2] : a[3];
  return x < y ? x : y;
}
inline bool any_above(F a, F b) {
  const I above = a > b;
  return (above[0] | above[1] | above[2] | above[3]) != 0;
}
inline I widen_u16(const u16* p) { return I{p[0], p[1], p[2], p[3]}; }
inline F widen_f16(I h) {
  const I sign = (h & 0x8000) << 16, magnitude = h & 0x7fff;
  const I normal = (magnitude << 13) + ((127 - 15) << 23);
  const I special =
      normal + ((255 - 31 - (127 - 15)) << 23);  // infinity and NaN keep the highest exponent
  // A subnormal m 2^-24 is (2^-14 + m 2^-24) - 2^-14, whose terms are normal in single precision.
  const I least = set1i((127 - 14) << 23);
  const I subnormal = bits_of(floats_of(least + (magnitude << 13)) - floats_of(least));
  const I finite = magnitude < set1i(0x0400) ? subnormal : normal;
  return floats_of(sign | (magnitude >= set1i(0x7c00) ? special : finite));
}
inline F load_f16(const u16* p) { return widen_f16(widen_u16(p)); }
inline F load_f16_n(const u16* p, i64 n) {
  u16 whole[kLanes] = {};
  std::memcpy(whole, p, static_cast<std::size_t>(n) * sizeof(u16));
  return load_f16(whole);
}
inline F load_bf16(const u16* p) { return floats_of(widen_u16(p) << 16); }
inline F load_bf16_n(const u16* p, i64 n) {
  u16 whole[kLanes] = {};
  std::memcpy(whole, p, static_cast<std::size_t>(n) * sizeof(u16));
  return load_bf16(whole);
}
inline I narrow_f16(F v) {
  const I bits = bits_of(v), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  const I special =
      magnitude > set1i(0x7f800000) ? ((magnitude >> 13) & 0x3ff) | set1i(0x7e00) : set1i(0x7c00);
  // Adding 0.5 leaves the bits of a subnormal half, rounded, at the bottom.
  const I subnormal = bits_of(floats_of(magnitude) + set1(0.5f)) - (126 << 23);
  const I normal = (magnitude - ((127 - 15) << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const I finite = magnitude < set1i(0x38800000) ? subnormal : normal;
  return sign | (magnitude >= set1i(0x47800000) ? special : finite);
}
inline void store_u16_n(u16* p, I v, i64 n) {
  for (i64 i = 0; i < n; ++i) p[i] = static_cast<u16>(v[i]);
}
inline void store_f16(u16* p, F v) { store_u16_n(p, narrow_f16(v), kLanes); }
inline void store_f16_n(u16* p, F v, i64 n) { store_u16_n(p, narrow_f16(v), n); }
inline I narrow_bf16(F v) {
  const I bits = bits_of(v);
  const I rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return (v == v ? rounded : bits | 0x400000) >> 16;
}
inline void store_bf16(u16* p, F v) { store_u16_n(p, narrow_bf16(v), kLanes); }
inline void store_bf16_n(u16* p, F v, i64 n) { store_u16_n(p, narrow_bf16(v), n); }
inline F load_u8(const u8* p) { return __builtin_convertvector((I{p[0], p[1], p[2], p[3]}), F); }
inline F load_u4(const u8* p) {
  return __builtin_convertvector((I{p[0] & 15, p[0] >> 4, p[1] & 15, p[1] >> 4}), F);
}
inline void store_u8(u8* p, F v) {
  const I q = __builtin_convertvector(round(v), I);
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<u8>(q[i]);
}

#endif

// The sums across the lanes of four vectors.
#if defined(__AVX512F__) || defined(__AVX2__)
inline __m128 halves_added(F v) {
#if defined(__AVX512F__)
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
#else
  const __m256 eight = v;
#endif
  return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}
inline void store_sums(float* y, F a, F b, F c, F d) {
  __m128 s0 = halves_added(a), s1 = halves_added(b), s2 = halves_added(c), s3 = halves_added(d);
  _MM_TRANSPOSE4_PS(s0, s1, s2, s3);
  _mm_storeu_ps(y, _mm_add_ps(_mm_add_ps(s0, s2), _mm_add_ps(s1, s3)));
}
#else
inline void store_sums(float* y, F a, F b, F c, F d) {
  y[0] = sum(a), y[1] = sum(b), y[2] = sum(c), y[3] = sum(d);
}
#endif

inline float widen_f16(u16 h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  return widen_f16(I{h, h, h, h})[0];
#endif
}

inline u16 narrow_f16(float x) {
#if defined(__F16C__)
  return static_cast<u16>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  return static_cast<u16>(narrow_f16(set1(x))[0]);
#endif
}

template <class T>
inline T read(const void* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// Asks for memory that is read soon; it need not be there.
inline void fetch(const void* p, i64 bytes) {
  for (i64 i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const u8*>(p) + i);
}

// Memory that is asked for a part at a time. Requests beyond what a cache can wait for make their thread wait, so they are
// best spread evenly.
struct Ahead {
  const u8 *due = nullptr, *end = nullptr;
  const u8* at = due;  // the next line that was not asked for
  void fetch_next(i64 bytes) {
    due += bytes < end - due ? bytes : end - due;
    for (; at < due; at += 64) __builtin_prefetch(at);
  }
  // One line, where a part is no whole number of them: which turn takes one more would be guessed wrong each time.
  void fetch_line() {
    if (at >= end) return;
    __builtin_prefetch(at);
    at += 64;
  }
};

inline i64 smaller(i64 a, i64 b) { return a < b ? a : b; }

// 2^x for x <= 128, relative error below 3e-7; below -126 it fades to zero.
inline F exp2(F x) {
  x = max(set1(-200.f), x);  // keeps NaN
  const F n = round(x), f = x - n;
  F p = set1(kExp2[5]);
  for (int i = 4; i >= 0; --i) p = fma(p, f, set1(kExp2[i]));
  return times_power_of_two(p, n);
}

// e^x, relative error below 3e-7 where the result is a normal number; infinity above the range, zero below it.
inline F exp(F x) {
  x = min(set1(89.f), max(set1(-104.f), x));
  const F n = round(x * set1(1.44269504f));
  const F r = fma(n, set1(-1.42860677e-6f), fma(n, set1(-0.693145752f), x));  // ln 2 in two parts
  F p = set1(kExp[6]);
  for (int i = 5; i >= 0; --i) p = fma(p, r, set1(kExp[i]));
  return times_power_of_two(p, n);
}

}  // namespace mneme::kernels::MNEME_LEVEL
