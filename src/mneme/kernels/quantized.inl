// Products and unpacking of weights in the GGUF block formats.
//
//   y[m,n] = sum_k x[m,k] W[n,k]
//
// Quantized W meets activations of 8 bits: per block of 32, x ~ dx q with q in [-127,127], and products of small integers
// are summed exactly in 32 bits before one multiplication by dx d. With unsigned codes u the formats are
//   q4_1  w = d u + m             x'w = dx d sum(q u) + m (dx sum q)
//   q4_0  w = (d / 16)(16 u - 128)     the -128 is an initial value of the integer sums: ActivationRows::offset
//   q8_0  w = d (u - 128), u = byte ^ 0x80   likewise
// where AVX-512's instruction for bytes wants one unsigned side. Where small differences of x must stay small, W is
// unpacked in registers and meets x itself.
#pragma once

#include "mneme/kernels/simd.inl"

namespace mneme::kernels::MNEME_LEVEL {

inline constexpr i64 kRowsTogether = 4;  // their sums across lanes are taken together
// Weights are read once, so a row is asked for this many bytes early: hardware does not fetch across pages of 4 KiB.
inline constexpr i64 kAhead = 2048;

// ---- activations to 8 bits ----

inline void quantize_activations(const float* x, i64 M, i64 K,
                                 const ActivationTarget& to) noexcept {
  const i64 blocks = K / kBlock;
  for (i64 m = 0; m < M; ++m) {
    const float* row = x + m * K;
    std::int8_t* q = to.q + m * to.q_stride;
    std::int32_t* offset = to.offset + m * (to.q_stride / 4);
    float* scale = to.scale + m * to.block_stride;
    float* scale_sum = to.scale_sum + 2 * m * to.block_stride;
    for (i64 b = 0; b < blocks; ++b) {
      F highest = zero(), poison = zero();
      for (i64 i = 0; i < kBlock; i += kLanes) {
        const F v = load(row + b * kBlock + i);
        highest = max(highest, abs(v));
        poison = poison + (v - v);  // NaN where a number is not finite; it must reach the result
      }
      const float amplitude = largest(highest);
      const F inverse = set1(amplitude > 0.f ? 127.f / amplitude : 0.f);
      for (i64 i = 0; i < kBlock; i += kLanes) {
        // Through unsigned bytes: the sum 128 + q is in [1, 255].
        u8 shifted[kLanes];
        store_u8(shifted, round(load(row + b * kBlock + i) * inverse) + set1(128.f));
        for (i64 j = 0; j < kLanes; ++j)
          q[b * kBlock + i + j] = static_cast<std::int8_t>(shifted[j] ^ 0x80);
      }
      std::int32_t total = 0;
      for (i64 i = 0; i < kBlock; i += 4) {
        const std::int8_t* four = q + b * kBlock + i;
        const std::int32_t sum_of_four = four[0] + four[1] + four[2] + four[3];
        offset[(b * kBlock + i) / 4] = -128 * sum_of_four;
        total += sum_of_four;
      }
      const float d = amplitude / 127.f + sum(poison);
      scale[b] = d;
      scale_sum[2 * b] = d;
      scale_sum[2 * b + 1] = d * static_cast<float>(total);
    }
    for (i64 b = blocks; b < to.block_stride; ++b)
      scale[b] = scale_sum[2 * b] = scale_sum[2 * b + 1] = 0.f;
    for (i64 i = K; i < to.q_stride; ++i) q[i] = 0;
    for (i64 i = K / 4; i < to.q_stride / 4; ++i) offset[i] = 0;
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
    fetch(w + n * row + kAhead, row);
    i64 m = 0;
    for (; m + 4 <= a.M; m += 4) plain_row<Format, 4>(w + n * row, a, m, y + n, y_stride);
    if (a.M - m == 3) plain_row<Format, 3>(w + n * row, a, m, y + n, y_stride);
    if (a.M - m == 2) plain_row<Format, 2>(w + n * row, a, m, y + n, y_stride);
    if (a.M - m == 1) plain_row<Format, 1>(w + n * row, a, m, y + n, y_stride);
  }
}

// ---- quantized weights ----
// A format adds, for kM rows of activations and one row of weights, its products to kM vectors of sums.

#if defined(__AVX512VNNI__)

inline __m128i load16(const u8* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline __m512i load64(const void* p) { return _mm512_loadu_si512(p); }

// Lane i of the scales of a pair of blocks: entry `step * (i / 8)` of those of 16 blocks, or of 8 with `step` 2.
inline __m512i pair_lanes(int step) {
  const __m512i second = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(step), 1);
  return second;
}

// The 4-bit codes of one or two blocks, spread to bytes: low nibbles of the first, its high nibbles, then the second.
template <int kLowShift>  // 0: in the low halves of the bytes; 4: in the high halves
inline __m512i spread_nibbles(const u8* first_codes, const u8* second_codes) {
  __m512i codes = second_codes != nullptr
                      ? _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(load16(first_codes)),
                                                    0xff00, load16(second_codes))
                      : _mm512_maskz_broadcast_i32x4(0x00ff, load16(first_codes));
  if constexpr (kLowShift == 0) {
    const __m512i by = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
    return _mm512_and_si512(_mm512_srlv_epi32(codes, by), _mm512_set1_epi8(0x0f));
  } else {
    const __m512i by = _mm512_setr_epi32(4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0);
    return _mm512_and_si512(_mm512_sllv_epi32(codes, by),
                            _mm512_set1_epi8(static_cast<char>(0xf0)));
  }
}

struct Q4_1 {
  static constexpr i64 kBytes = 20;

  // The words (d, m) that begin n <= 16 blocks; zero past n.
  static __m512i headers(const u8* w, i64 n) {
    if (n <= 4) {
      const __m512i words = _mm512_maskz_loadu_epi32(first(smaller(5 * n, 16)), w);
      const __m512i at = _mm512_setr_epi32(0, 5, 10, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
      return _mm512_maskz_permutexvar_epi32(first(n), at, words);
    }
    __m512i part[5];
    for (int j = 0; j < 5; ++j) {
      const i64 words = 5 * n - 16 * j;
      part[j] =
          n == 16 ? load64(w + 64 * j)
                  : _mm512_maskz_loadu_epi32(first(words < 0 ? 0 : smaller(words, 16)), w + 64 * j);
    }
    const __m512i at01 = _mm512_setr_epi32(0, 5, 10, 15, 20, 25, 30, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i at23 = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 3, 8, 13, 18, 23, 28, 0, 0, 0);
    const __m512i at4 = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 6, 11);
    const __m512i low = _mm512_permutex2var_epi32(part[0], at01, part[1]);
    const __m512i middle = _mm512_permutex2var_epi32(part[2], at23, part[3]);
    return _mm512_mask_permutexvar_epi32(_mm512_mask_mov_epi32(low, 0xff80, middle), 0xe000, at4,
                                         part[4]);
  }

  // Up to 8 blocks whose scales and minima alternate in `dm`.
  template <int kM>
  static void eight(const u8* w, i64 n, F dm, const ActivationRows& a, i64 m, i64 block,
                    F (&acc)[kM]) {
    F by[kM];
    for (int j = 0; j < kM; ++j) {
      by[j] = dm * load(a.scale_sum + 2 * ((m + j) * a.block_stride + block));
      acc[j] = _mm512_mask_add_ps(acc[j], 0xaaaa, acc[j], by[j]);
    }
    __m512i at = pair_lanes(2);
    for (i64 b = 0; b < n; b += 2) {
      const u8* codes = w + b * kBytes + 4;
      const __m512i u = spread_nibbles<0>(codes, b + 1 < n ? codes + kBytes : nullptr);
      for (int j = 0; j < kM; ++j) {
        const __m512i x = load64(a.q + (m + j) * a.q_stride + (block + b) * kBlock);
        const F dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), u, x));
        acc[j] = fma(dot, _mm512_permutexvar_ps(at, by[j]), acc[j]);
      }
      at = _mm512_add_epi32(at, _mm512_set1_epi32(4));
    }
  }

  template <int kM>
  static void row(const u8* w, i64 blocks, const ActivationRows& a, i64 m, F (&acc)[kM]) {
    i64 b = 0;
    for (; b + 16 <= blocks; b += 16) {
      const __m512i h = headers(w + b * kBytes, 16);
      eight(w + b * kBytes, 8, _mm512_cvtph_ps(_mm512_castsi512_si256(h)), a, m, b, acc);
      eight(w + (b + 8) * kBytes, 8, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1)), a, m, b + 8,
            acc);
    }
    if (b < blocks) {
      const i64 n = blocks - b;
      const __m512i h = headers(w + b * kBytes, n);
      eight(w + b * kBytes, smaller(n, 8), _mm512_cvtph_ps(_mm512_castsi512_si256(h)), a, m, b,
            acc);
      if (n > 8)
        eight(w + (b + 8) * kBytes, n - 8, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1)), a, m,
              b + 8, acc);
    }
  }
};

// Formats of a scale d alone, whose codes are spread to unsigned bytes 128 too high.
template <class Format>
struct Offset128 {
  // Scales of n <= 16 blocks. Put together in general registers: their ports are idle, those of shuffles are not.
  static F scales(const u8* w, i64 n) {
    std::uint64_t four[4] = {0, 0, 0, 0};
    if (n == 16) {
      for (int i = 0; i < 16; ++i) {
        four[i / 4] |= std::uint64_t{read<u16>(w + i * Format::kBytes)} << (16 * (i % 4));
      }
    } else {
      for (i64 i = 0; i < n; ++i)
        four[i / 4] |= std::uint64_t{read<u16>(w + i * Format::kBytes)} << (16 * (i % 4));
    }
    const auto word = [&](int i) { return static_cast<long long>(four[i]); };
    return _mm512_cvtph_ps(_mm256_setr_epi64x(word(0), word(1), word(2), word(3))) *
           set1(Format::kUnit);
  }

  template <int kM>
  static void sixteen(const u8* w, i64 n, const ActivationRows& a, i64 m, i64 block, F (&acc)[kM]) {
    const F d = scales(w, n);
    F by[kM];
    for (int j = 0; j < kM; ++j) by[j] = d * load(a.scale + (m + j) * a.block_stride + block);
    __m512i at = pair_lanes(1);
    for (i64 b = 0; b < n; b += 2) {
      const u8* codes = w + b * Format::kBytes + 2;
      const __m512i u = Format::spread(codes, b + 1 < n ? codes + Format::kBytes : nullptr);
      for (int j = 0; j < kM; ++j) {
        const i64 k = (m + j) * a.q_stride + (block + b) * kBlock;
        const F dot =
            _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(load64(a.offset + k / 4), u, load64(a.q + k)));
        acc[j] = fma(dot, _mm512_permutexvar_ps(at, by[j]), acc[j]);
      }
      at = _mm512_add_epi32(at, _mm512_set1_epi32(2));
    }
  }

  template <int kM>
  static void row(const u8* w, i64 blocks, const ActivationRows& a, i64 m, F (&acc)[kM]) {
    i64 b = 0;
    for (; b + 16 <= blocks; b += 16) sixteen(w + b * Format::kBytes, 16, a, m, b, acc);
    if (b < blocks) sixteen(w + b * Format::kBytes, blocks - b, a, m, b, acc);
  }
};

struct Q4_0 : Offset128<Q4_0> {
  static constexpr i64 kBytes = 18;
  static constexpr float kUnit = 1.f / 16.f;
  static __m512i spread(const u8* one, const u8* two) { return spread_nibbles<4>(one, two); }
};

struct Q8_0 : Offset128<Q8_0> {
  static constexpr i64 kBytes = 34;
  static constexpr float kUnit = 1.f;
  static __m512i spread(const u8* one, const u8* two) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(one));
    const __m256i high = two != nullptr ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(two))
                                        : _mm256_setzero_si256();
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    return _mm512_xor_si512(both, _mm512_set1_epi8(static_cast<char>(0x80)));
  }
};

#elif defined(__AVX2__)

inline __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// Sums of four products of bytes, u unsigned at most 128 and x in [-127,127]: 2 * 128 * 127 fits in 16 bits.
inline F dot_bytes(__m256i u, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(u, x);
  return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// The same of signed w in [-128,127].
inline F dot_signed(__m256i w, __m256i x) {
  return dot_bytes(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

inline __m256i spread_nibbles(const u8* codes) {
  const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
  return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(both, 4), both), _mm256_set1_epi8(0x0f));
}

// The n <= 8 half-precision numbers `bytes` apart; zero past n.
inline F strided_f16(const u8* w, i64 n, i64 bytes) {
  std::uint64_t four[2] = {0, 0};
  if (n == 8) {
    for (int i = 0; i < 8; ++i)
      four[i / 4] |= std::uint64_t{read<u16>(w + i * bytes)} << (16 * (i % 4));
  } else {
    for (i64 i = 0; i < n; ++i)
      four[i / 4] |= std::uint64_t{read<u16>(w + i * bytes)} << (16 * (i % 4));
  }
  return _mm256_cvtph_ps(
      _mm_set_epi64x(static_cast<long long>(four[1]), static_cast<long long>(four[0])));
}

template <class Format>
struct InEights {
  template <int kM>
  static void row(const u8* w, i64 blocks, const ActivationRows& a, i64 m, F (&acc)[kM]) {
    for (i64 b = 0; b < blocks; b += 8) {
      const u8* here = w + b * Format::kBytes;
      const i64 n = smaller(8, blocks - b);
      const F d = strided_f16(here, n, Format::kBytes);
      alignas(32) float by[kM][8];
      for (int j = 0; j < kM; ++j) store(by[j], d * load(a.scale + (m + j) * a.block_stride + b));
      if constexpr (Format::kHasMinimum) {
        const F minimum = strided_f16(here + 2, n, Format::kBytes);
        for (int j = 0; j < kM; ++j) {
          // (scale, sum) pairs of 8 blocks; keep the sums, in an order that the minima are put in as well.
          const float* pairs = a.scale_sum + 2 * ((m + j) * a.block_stride + b);
          const F sums =
              _mm256_shuffle_ps(load(pairs), load(pairs + 8), 0xdd);  // blocks 0 1 4 5 2 3 6 7
          const __m256i order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
          acc[j] = fma(_mm256_permutevar8x32_ps(minimum, order), sums, acc[j]);
        }
      }
      for (i64 i = 0; i < n; ++i) {
        const __m256i u = Format::spread(here + i * Format::kBytes);
        for (int j = 0; j < kM; ++j) {
          const __m256i x = load32(a.q + (m + j) * a.q_stride + (b + i) * kBlock);
          acc[j] = fma(Format::dot(u, x), set1(by[j][i]), acc[j]);
        }
      }
    }
  }
};

struct Q4_1 : InEights<Q4_1> {
  static constexpr i64 kBytes = 20;
  static constexpr bool kHasMinimum = true;
  static __m256i spread(const u8* block) { return spread_nibbles(block + 4); }
  static F dot(__m256i u, __m256i x) { return dot_bytes(u, x); }
};
struct Q4_0 : InEights<Q4_0> {
  static constexpr i64 kBytes = 18;
  static constexpr bool kHasMinimum = false;
  static __m256i spread(const u8* block) {
    return _mm256_sub_epi8(spread_nibbles(block + 2), _mm256_set1_epi8(8));
  }
  static F dot(__m256i w, __m256i x) { return dot_signed(w, x); }
};
struct Q8_0 : InEights<Q8_0> {
  static constexpr i64 kBytes = 34;
  static constexpr bool kHasMinimum = false;
  static __m256i spread(const u8* block) { return load32(block + 2); }
  static F dot(__m256i w, __m256i x) { return dot_signed(w, x); }
};

#else

// Codes of one block as signed 16-bit numbers, which the compiler multiplies and adds in pairs.
template <class Format>
struct InBlocks {
  template <int kM>
  static void row(const u8* w, i64 blocks, const ActivationRows& a, i64 m, F (&acc)[kM]) {
    float total[kM] = {};
    for (i64 b = 0; b < blocks; ++b) {
      const u8* block = w + b * Format::kBytes;
      std::int16_t code[kBlock];
      Format::spread(block, code);
      const float d = widen_f16(read<u16>(block));
      for (int j = 0; j < kM; ++j) {
        const std::int8_t* q = a.q + (m + j) * a.q_stride + b * kBlock;
        std::int32_t dot = 0;
        for (i64 i = 0; i < kBlock; ++i) dot += code[i] * static_cast<std::int16_t>(q[i]);
        const float* pair = a.scale_sum + 2 * ((m + j) * a.block_stride + b);
        total[j] += d * pair[0] * static_cast<float>(dot);
        if constexpr (Format::kHasMinimum) total[j] += widen_f16(read<u16>(block + 2)) * pair[1];
      }
    }
    for (int j = 0; j < kM; ++j) acc[j] = acc[j] + F{total[j], 0.f, 0.f, 0.f};
  }
};

struct Q4_1 : InBlocks<Q4_1> {
  static constexpr i64 kBytes = 20;
  static constexpr bool kHasMinimum = true;
  static void spread(const u8* block, std::int16_t* code) {
    for (i64 i = 0; i < 16; ++i) code[i] = block[4 + i] & 15, code[i + 16] = block[4 + i] >> 4;
  }
};
struct Q4_0 : InBlocks<Q4_0> {
  static constexpr i64 kBytes = 18;
  static constexpr bool kHasMinimum = false;
  static void spread(const u8* block, std::int16_t* code) {
    for (i64 i = 0; i < 16; ++i) {
      code[i] = static_cast<std::int16_t>((block[2 + i] & 15) - 8);
      code[i + 16] = static_cast<std::int16_t>((block[2 + i] >> 4) - 8);
    }
  }
};
struct Q8_0 : InBlocks<Q8_0> {
  static constexpr i64 kBytes = 34;
  static constexpr bool kHasMinimum = false;
  static void spread(const u8* block, std::int16_t* code) {
    for (i64 i = 0; i < kBlock; ++i) code[i] = static_cast<std::int8_t>(block[2 + i]);
  }
};

#endif

template <class Format, int kM>
inline void quantized_rows(const u8* w, i64 n_begin, i64 n_end, const ActivationRows& a, i64 m,
                           float* y, i64 y_stride) {
  const i64 blocks = a.K / kBlock, row = blocks * Format::kBytes;
  i64 n = n_begin;
  for (; n + kRowsTogether <= n_end; n += kRowsTogether) {
    F acc[kRowsTogether][kM];
    for (i64 r = 0; r < kRowsTogether; ++r) {
      for (int j = 0; j < kM; ++j) acc[r][j] = zero();
      fetch(w + (n + r) * row + kAhead, row);
      Format::row(w + (n + r) * row, blocks, a, m, acc[r]);
    }
    for (int j = 0; j < kM; ++j)
      store_sums(y + (m + j) * y_stride + n, acc[0][j], acc[1][j], acc[2][j], acc[3][j]);
  }
  for (; n < n_end; ++n) {
    F acc[kM];
    for (int j = 0; j < kM; ++j) acc[j] = zero();
    Format::row(w + n * row, blocks, a, m, acc);
    for (int j = 0; j < kM; ++j) y[(m + j) * y_stride + n] = sum(acc[j]);
  }
}

template <class Format>
inline void matvec_quantized(const u8* w, i64 n_begin, i64 n_end, const ActivationRows& a, float* y,
                             i64 y_stride) noexcept {
  // Few enough rows of weights that they stay in the first cache while every four rows of activations meet them.
  const i64 row = a.K / kBlock * Format::kBytes;
  i64 step = n_end - n_begin;
  if (a.M > 4 && row > 0) {
    step = (16384 / row) / kRowsTogether * kRowsTogether;
    if (step < kRowsTogether) step = kRowsTogether;
  }
  for (i64 n = n_begin; n < n_end; n += step) {
    const i64 end = smaller(n + step, n_end);
    i64 m = 0;
    for (; m + 4 <= a.M; m += 4) quantized_rows<Format, 4>(w, n, end, a, m, y, y_stride);
    if (a.M - m == 3) quantized_rows<Format, 3>(w, n, end, a, m, y, y_stride);
    if (a.M - m == 2) quantized_rows<Format, 2>(w, n, end, a, m, y, y_stride);
    if (a.M - m == 1) quantized_rows<Format, 1>(w, n, end, a, m, y, y_stride);
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
    const __m128i codes = load16(in + 4);
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
    fetch(row + kAhead, blocks * kBytes);
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
