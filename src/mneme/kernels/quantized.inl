// Products and unpacking of weights in the formats of files; products with packed weights are in packed.inl.
//
//   y[m,n] = sum_k x[m,k] W[n,k]
//
// Quantized W is unpacked in registers.
#pragma once

#include "mneme/kernels/packed.inl"

namespace mneme::kernels::MNEME_LEVEL {

// ---- activations to integers ----

inline constexpr float kPartsRatio = 254.f;  // units of a row's second part in one of its first

#if defined(__AVX512F__)

// What `join` makes of all lanes of each of four vectors.
template <class Join>
inline __m128i four_joined(const __m512i (&x)[4], const Join& join) {
  const auto halved = [&](__m512i v) {
    const __m256i eight = join(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    return _mm_castsi128_ps(
        _mm256_castsi256_si128(join(eight, _mm256_permute2x128_si256(eight, eight, 1))));
  };
  __m128 rows[4] = {halved(x[0]), halved(x[1]), halved(x[2]), halved(x[3])};
  _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
  const auto both = [&](__m128 p, __m128 q) {
    return _mm256_castsi256_si128(join(_mm256_castsi128_si256(_mm_castps_si128(p)),
                                       _mm256_castsi128_si256(_mm_castps_si128(q))));
  };
  return _mm256_castsi256_si128(join(_mm256_castsi128_si256(both(rows[0], rows[1])),
                                     _mm256_castsi128_si256(both(rows[2], rows[3]))));
}

// n <= 4 blocks of row m from block b on.
inline void quantize_blocks(const float* numbers, i64 n, i64 m, i64 b,
                            const ActivationTarget& to) noexcept {
  F left[4][2];  // of the numbers, in units of the scale
  __m512i magnitudes[4] = {};
  for (i64 i = 0; i < n; ++i) {
    left[i][0] = load(numbers + i * kBlock);
    left[i][1] = load(numbers + i * kBlock + kLanes);
    // As bits NaN is above all: it must reach the result.
    magnitudes[i] = _mm512_max_epi32(_mm512_castps_si512(abs(left[i][0])),
                                     _mm512_castps_si512(abs(left[i][1])));
  }
  const __m128 amplitude = _mm_castsi128_ps(
      four_joined(magnitudes, [](__m256i p, __m256i q) { return _mm256_max_epi32(p, q); }));
  alignas(16) float inverse[4];
  _mm_store_ps(inverse, _mm_maskz_div_ps(_mm_cmp_ps_mask(amplitude, _mm_setzero_ps(), _CMP_GT_OQ),
                                         _mm_set1_ps(127.f), amplitude));
  // NaN also where a number is infinite.
  __m128 scale =
      _mm_add_ps(_mm_div_ps(amplitude, _mm_set1_ps(127.f)), _mm_sub_ps(amplitude, amplitude));
  for (i64 i = 0; i < n; ++i) {
    for (F& x : left[i]) x = x * set1(inverse[i]);
  }
  const auto lanes = static_cast<__mmask8>((1U << n) - 1U);
  for (i64 part = 0; part < to.parts; ++part) {
    std::int8_t* q = to.q + (m * to.parts + part) * to.q_stride + b * kBlock;
    __m512i totals[4] = {};
    for (i64 i = 0; i < n; ++i) {
      for (int half = 0; half < 2; ++half) {
        // What rounding leaves is at most a half, which is 127 of the next part's units.
        F& x = left[i][half];
        const __m512i whole = _mm512_cvtps_epi32(x);
        if (part + 1 < to.parts) x = (x - _mm512_cvtepi32_ps(whole)) * set1(kPartsRatio);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i * kBlock + half * kLanes),
                         _mm512_cvtepi32_epi8(whole));
        totals[i] = _mm512_add_epi32(totals[i], whole);
      }
    }
    const __m128i total =
        four_joined(totals, [](__m256i p, __m256i s) { return _mm256_add_epi32(p, s); });
    const i64 at = (m * to.parts + part) * to.block_stride + b;
    _mm_mask_storeu_ps(to.scale + at, lanes, scale);
    _mm_mask_storeu_epi32(to.total + at, lanes, total);
    _mm_mask_storeu_ps(to.scaled_total + at, lanes, _mm_mul_ps(scale, _mm_cvtepi32_ps(total)));
    scale = _mm_mul_ps(scale, _mm_set1_ps(1.f / kPartsRatio));
  }
}

#else

inline void quantize_blocks(const float* numbers, i64 n, i64 m, i64 b,
                            const ActivationTarget& to) noexcept {
  for (i64 end = b + n; b < end; ++b, numbers += kBlock) {
    F highest = zero(), poison = zero();
    for (i64 i = 0; i < kBlock; i += kLanes) {
      const F v = load(numbers + i);
      highest = max(highest, abs(v));
      poison = poison + (v - v);  // NaN where a number is not finite; it must reach the result
    }
    const float amplitude = largest(highest);
    const F inverse = set1(amplitude > 0.f ? 127.f / amplitude : 0.f);
    float scale = amplitude / 127.f + sum(poison);
    float left[kBlock];  // of the numbers, in units of the scale
    for (i64 i = 0; i < kBlock; i += kLanes) store(left + i, load(numbers + i) * inverse);
    for (i64 part = 0; part < to.parts; ++part) {
      std::int8_t* q = to.q + (m * to.parts + part) * to.q_stride + b * kBlock;
      for (i64 i = 0; i < kBlock; i += kLanes) {
        // What rounding leaves is at most a half, which is 127 of the next part's units.
        const F whole = round(load(left + i));
        if (part + 1 < to.parts) store(left + i, (load(left + i) - whole) * set1(kPartsRatio));
        // Through unsigned bytes: the sum 128 + q is in [1, 255].
        u8 shifted[kLanes];
        store_u8(shifted, whole + set1(128.f));
        for (i64 j = 0; j < kLanes; ++j) q[i + j] = static_cast<std::int8_t>(shifted[j] ^ 0x80);
      }
      std::int32_t total = 0;
      for (i64 i = 0; i < kBlock; ++i) total += q[i];
      const i64 at = (m * to.parts + part) * to.block_stride + b;
      to.scale[at] = scale;
      to.total[at] = total;
      to.scaled_total[at] = scale * static_cast<float>(total);
      scale *= 1.f / kPartsRatio;
    }
  }
}

#endif

inline void quantize_activations(const float* x, i64 M, i64 K,
                                 const ActivationTarget& to) noexcept {
  const i64 blocks = K / kBlock;
  for (i64 m = 0; m < M; ++m) {
    for (i64 b = 0; b < blocks; b += 4)
      quantize_blocks(x + m * K + b * kBlock, smaller(4, blocks - b), m, b, to);
    for (i64 part = 0; part < to.parts; ++part) {
      std::int8_t* q = to.q + (m * to.parts + part) * to.q_stride;
      for (i64 i = K; i < to.q_stride; ++i) q[i] = 0;
    }
  }
}

// ---- plain weights ----

struct PlainF32 {
  static constexpr i64 kBytes = 4;
  static F get(const u8* w, i64 k) { return load(reinterpret_cast<const float*>(w) + k); }
  static F get_n(const u8* w, i64 k, i64 n) {
    return load_n(reinterpret_cast<const float*>(w) + k, n);
  }
};
struct PlainF16 {
  static constexpr i64 kBytes = 2;
  static F get(const u8* w, i64 k) { return load_f16(reinterpret_cast<const u16*>(w) + k); }
  static F get_n(const u8* w, i64 k, i64 n) {
    return load_f16_n(reinterpret_cast<const u16*>(w) + k, n);
  }
};
struct PlainBf16 {
  static constexpr i64 kBytes = 2;
  static F get(const u8* w, i64 k) { return load_bf16(reinterpret_cast<const u16*>(w) + k); }
  static F get_n(const u8* w, i64 k, i64 n) {
    return load_bf16_n(reinterpret_cast<const u16*>(w) + k, n);
  }
};

template <class Format, int kM>
inline void plain_row(const u8* w, const ActivationRows& a, i64 m, float* y, i64 y_stride) {
  F even[kM], odd[kM];
  for (int j = 0; j < kM; ++j) even[j] = odd[j] = zero();
  const float* x = a.x + m * a.K;
  i64 k = 0;
  for (; k + 2 * kLanes <= a.K; k += 2 * kLanes) {
    const F w0 = Format::get(w, k), w1 = Format::get(w, k + kLanes);
    for (int j = 0; j < kM; ++j) {
      even[j] = fma(w0, load(x + j * a.K + k), even[j]);
      odd[j] = fma(w1, load(x + j * a.K + k + kLanes), odd[j]);
    }
  }
  for (; k < a.K; k += kLanes) {
    const i64 n = smaller(kLanes, a.K - k);
    const F w0 = Format::get_n(w, k, n);
    for (int j = 0; j < kM; ++j) even[j] = fma(w0, load_n(x + j * a.K + k, n), even[j]);
  }
  for (int j = 0; j < kM; ++j) y[(m + j) * y_stride] = sum(even[j] + odd[j]);
}

template <class Format>
inline void matvec_plain(const u8* w, i64 n_begin, i64 n_end, const ActivationRows& a, float* y,
                         i64 y_stride) noexcept {
  const i64 row = a.K * Format::kBytes;
  for (i64 n = n_begin; n < n_end; ++n) {
    fetch_ahead(w + n * row, row);
    i64 m = 0;
    for (; m + 4 <= a.M; m += 4) plain_row<Format, 4>(w + n * row, a, m, y + n, y_stride);
    if (a.M - m == 3) plain_row<Format, 3>(w + n * row, a, m, y + n, y_stride);
    if (a.M - m == 2) plain_row<Format, 2>(w + n * row, a, m, y + n, y_stride);
    if (a.M - m == 1) plain_row<Format, 1>(w + n * row, a, m, y + n, y_stride);
  }
}

// ---- unpacking ----
// d u is exact in single precision (11 + 8 bits), so that one rounding remains and every level gives the same bits.

struct ToF32 {
  using Number = float;
  static void put(float* p, F v) { store(p, v); }
  static void put_n(float* p, F v, i64 n) { store_n(p, v, n); }
};
struct ToBf16 {
  using Number = u16;
  static void put(u16* p, F v) { store_bf16(p, v); }
  static void put_n(u16* p, F v, i64 n) { store_bf16_n(p, v, n); }
};

template <class Format, class To>
inline void unpack_plain(const u8* in, i64 n, typename To::Number* out) noexcept {
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) To::put(out + i, Format::get(in, i));
  if (i < n) To::put_n(out + i, Format::get_n(in, i, n - i), n - i);
}

template <class To>
inline void unpack_q8_0(const u8* in, i64 blocks, typename To::Number* out) noexcept {
  for (i64 b = 0; b < blocks; ++b, in += 34, out += kBlock) {
    const F d = set1(widen_f16(read<u16>(in)));
    for (i64 i = 0; i < kBlock; i += kLanes) {
      u8 unsigned_codes[kLanes];
      for (i64 j = 0; j < kLanes; ++j) unsigned_codes[j] = in[2 + i + j] ^ 0x80;
      To::put(out + i, d * (load_u8(unsigned_codes) - set1(128.f)));
    }
  }
}

template <class To>
inline void unpack_nibbles(const u8* codes, F d, F m, float minus, typename To::Number* out) {
  for (i64 i = 0; i < 16; i += kLanes) {
    u8 low[kLanes], high[kLanes];
    for (i64 j = 0; j < kLanes; ++j) low[j] = codes[i + j] & 15, high[j] = codes[i + j] >> 4;
    To::put(out + i, fma(d, load_u8(low) - set1(minus), m));
    To::put(out + 16 + i, fma(d, load_u8(high) - set1(minus), m));
  }
}

template <class To>
inline void unpack_q4_0(const u8* in, i64 blocks, typename To::Number* out) noexcept {
  for (i64 b = 0; b < blocks; ++b, in += 18, out += kBlock) {
    unpack_nibbles<To>(in + 2, set1(widen_f16(read<u16>(in))), zero(), 8.f, out);
  }
}

#if defined(__AVX512BW__)
// The 16 values of a block are one vector; its codes select from them.
template <class To>
inline void unpack_q4_1(const u8* in, i64 blocks, typename To::Number* out) noexcept {
  const F steps = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (i64 b = 0; b < blocks; ++b, in += 20, out += kBlock) {
    const F values = fma(set1(widen_f16(read<u16>(in))), steps, set1(widen_f16(read<u16>(in + 2))));
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 4));
    if constexpr (sizeof(typename To::Number) == 2) {
      const __m256i both = _mm256_set_m128i(_mm_srli_epi16(codes, 4), codes);
      const __m512i at = _mm512_cvtepu8_epi16(_mm256_and_si256(both, _mm256_set1_epi8(0x0f)));
      _mm512_storeu_si512(
          out, _mm512_permutexvar_epi16(at, _mm512_castsi256_si512(narrow_bf16(values))));
    } else {
      const __m512i at = _mm512_cvtepu8_epi32(codes);  // the permutation looks at the low four bits
      store(out, _mm512_permutexvar_ps(at, values));
      store(out + 16, _mm512_permutexvar_ps(_mm512_srli_epi32(at, 4), values));
    }
  }
}
#else
template <class To>
inline void unpack_q4_1(const u8* in, i64 blocks, typename To::Number* out) noexcept {
  for (i64 b = 0; b < blocks; ++b, in += 20, out += kBlock) {
    unpack_nibbles<To>(in + 4, set1(widen_f16(read<u16>(in))), set1(widen_f16(read<u16>(in + 2))),
                       0.f, out);
  }
}
#endif

// ---- quantized weights and activations of single precision ----

inline constexpr i64 kNumbersUnpacked = 512;  // 2 KiB: they stay in the first cache

// kM rows of activations meet n rows of weights, unpacked piece by piece.
template <void (*kUnpack)(const u8*, i64, float*) noexcept, i64 kBytes, int kM>
inline void unpacked_rows(const u8* w, i64 n_begin, i64 n_end, const ActivationRows& a, i64 m,
                          float* y, i64 y_stride) {
  alignas(64) float piece[kNumbersUnpacked];
  const i64 blocks = a.K / kBlock;
  const float* x = a.x + m * a.K;
  for (i64 n = n_begin; n < n_end; ++n) {
    const u8* row = w + n * blocks * kBytes;
    fetch_ahead(row, blocks * kBytes);
    F even[kM], odd[kM];
    for (int j = 0; j < kM; ++j) even[j] = odd[j] = zero();
    for (i64 b = 0; b < blocks; b += kNumbersUnpacked / kBlock) {
      const i64 numbers = kBlock * smaller(kNumbersUnpacked / kBlock, blocks - b);
      kUnpack(row + b * kBytes, numbers / kBlock, piece);
      for (i64 k = 0; k < numbers; k += 2 * kLanes) {
        const F w0 = load(piece + k), w1 = load(piece + k + kLanes);
        for (int j = 0; j < kM; ++j) {
          const float* at = x + j * a.K + b * kBlock + k;
          even[j] = fma(w0, load(at), even[j]);
          odd[j] = fma(w1, load(at + kLanes), odd[j]);
        }
      }
    }
    for (int j = 0; j < kM; ++j) y[(m + j) * y_stride + n] = sum(even[j] + odd[j]);
  }
}

template <void (*kUnpack)(const u8*, i64, float*) noexcept, i64 kBytes>
inline void matvec_unpacked(const u8* w, i64 n_begin, i64 n_end, const ActivationRows& a, float* y,
                            i64 y_stride) noexcept {
  static_assert(kBlock % (2 * kLanes) == 0);
  i64 m = 0;
  for (; m + 8 <= a.M; m += 8)
    unpacked_rows<kUnpack, kBytes, 8>(w, n_begin, n_end, a, m, y, y_stride);
  if (a.M - m >= 4) {
    unpacked_rows<kUnpack, kBytes, 4>(w, n_begin, n_end, a, m, y, y_stride);
    m += 4;
  }
  if (a.M - m == 3) unpacked_rows<kUnpack, kBytes, 3>(w, n_begin, n_end, a, m, y, y_stride);
  if (a.M - m == 2) unpacked_rows<kUnpack, kBytes, 2>(w, n_begin, n_end, a, m, y, y_stride);
  if (a.M - m == 1) unpacked_rows<kUnpack, kBytes, 1>(w, n_begin, n_end, a, m, y, y_stride);
}

}  // namespace mneme::kernels::MNEME_LEVEL
