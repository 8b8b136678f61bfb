// Products of rounded rows and weights in panels of kTileColumns columns; see narrow.h for the forms.
//
//   bf16   row: pairs of bf16            panel: [pairs,columns] pairs
//   int16  row: pairs, then s            panel: [columns] t, then [pairs,columns] pairs
//   int8   row: fours of u + 128, then s of each group
//          panel: for each group [columns] t, [columns] -128 sum c, [8,columns] fours of c
//
// Weights are rounded by the function that rounds rows, then brought into panels. All is in words of four bytes.
#pragma once

#include "mneme/kernels/activation.inl"
#include "mneme/kernels/tile.inl"

namespace mneme::kernels::MNEME_LEVEL {

// A tile of sums [rows,kTileColumns] to its place: bias, activation, and what is beyond n columns dropped.
template <class Act>
inline void finish_tile(const float* tile, i64 rows, i64 n, const float* bias, const Act& act,
                        float* y, i64 y_stride) {
  for (i64 i = 0; i < n; i += kLanes) {
    const i64 width = smaller(kLanes, n - i);
    const F b = bias == nullptr ? zero() : load_n(bias + i, width);
    for (i64 r = 0; r < rows; ++r) {
      const F value = act(load(tile + r * kTileColumns + i) + b);
      width == kLanes ? store(y + r * y_stride + i, value)
                      : store_n(y + r * y_stride + i, value, width);
    }
  }
}

// A panel serves all rows, and meanwhile the next one is brought near: into the second cache, which holds both.
template <class Form>
inline void multiply_narrow(const NarrowBlock& b) noexcept {
  const i64 x_words = Form::row_words(b.K), panel_words = Form::panel_words(b.K);
  with_activation(b.activation, [&](const auto& act) {
    const u32* panel = b.w;
    for (i64 n = b.n_begin; n < b.n_end; n += kTileColumns, panel += panel_words) {
      const u32* next = panel + panel_words;
      in_tiles<Form::kRows>(b.rows, [&](auto rows, i64 m) {
        if (n + kTileColumns < b.n_end) {
          const u32* until = panel + panel_words + panel_words * (m + rows()) / b.rows;
          for (; next < until; next += 16) __builtin_prefetch(next, 0, 2);
        }
        alignas(64) float tile[Form::kRows * kTileColumns];
        Form::template multiply<rows()>(b.x + m * x_words, x_words, panel, b.K, tile);
        finish_tile(tile, rows(), smaller(kTileColumns, b.n_end - n),
                    b.bias == nullptr ? nullptr : b.bias + n, act, b.y + m * b.y_stride + n,
                    b.y_stride);
      });
    }
  });
}

template <class Form>
inline void narrow_rows(const float* x, i64 rows, i64 x_stride, i64 K, u32* out) noexcept {
  for (i64 m = 0; m < rows; ++m) Form::narrow(x + m * x_stride, K, out + m * Form::row_words(K));
}

template <class Form>
inline i64 narrow_row_words(i64 K) noexcept {
  return Form::row_words(K);
}
template <class Form>
inline i64 narrow_panel_words(i64 K) noexcept {
  return Form::panel_words(K);
}

template <class Form>
inline constexpr NarrowKernels kNarrow{
    kTileColumns, narrow_row_words<Form>, narrow_panel_words<Form>, narrow_rows<Form>,
    Form::pack,   multiply_narrow<Form>};

// So many cache lines that rows do not all fall to the same few sets of a cache.
inline constexpr i64 spread(i64 words) { return (((words + 15) / 16) | 1) * 16; }

// Words [0, count) of n rows, one row a column, zeros beyond n.
inline void transpose_words(const u32* rows, i64 row_words, i64 n, i64 count, u32* panel) {
  for (i64 c = 0; c < kTileColumns; ++c) {
    for (i64 s = 0; s < count; ++s)
      panel[s * kTileColumns + c] = c < n ? rows[c * row_words + s] : 0;
  }
}

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)

struct NarrowBf16 {
  static constexpr int kRows = kTileRows;
  static i64 row_words(i64 K) { return spread((K + 1) / 2); }
  static i64 panel_words(i64 K) { return (K + 1) / 2 * kTileColumns; }

  static void narrow(const float* x, i64 K, u32* out) {
    for (i64 k = 0; k < K; k += 32) {
      const F low = load_n(x + k, smaller(16, K - k)),
              high = load_n(x + k + 16, smaller(16, K - k > 16 ? K - k - 16 : 0));
      _mm512_storeu_si512(out + k / 2, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    }
  }
  static void pack(const u32* rows, i64 n, i64 K, u32* panel) noexcept {
    transpose_words(rows, row_words(K), n, (K + 1) / 2, panel);
  }
  template <int kR>
  static void multiply(const u32* x, i64 x_words, const u32* panel, i64 K, float* tile) {
    F sums[kR][2];
    multiply_tile<PairSteps>(x, x_words, panel, kTileColumns, (K + 1) / 2, sums);
    for (int r = 0; r < kR; ++r) {
      store(tile + r * kTileColumns, sums[r][0]);
      store(tile + r * kTileColumns + kLanes, sums[r][1]);
    }
  }
};

// Up to sixteen groups are rounded side by side, one a lane: number i of group g of G is at i G + g, so that turning and
// the largest number need no exchange between lanes. Any 32 numbers may form a group as long as those of the weight do.
struct NarrowInt8 {
  static constexpr int kRows = 6;
  static constexpr i64 kGroup = 32, kFours = kGroup / 4, kSide = 16;
  // Neighbouring groups that share a scale: their products add up as integers.
  static constexpr i64 kTogether = 4;
  static constexpr i64 kGroupWords = (2 + kFours) * kTileColumns;
  static i64 groups(i64 K) { return (K + kGroup - 1) / kGroup; }
  static i64 row_words(i64 K) { return spread(groups(K) * (kFours + 1)); }
  static i64 panel_words(i64 K) { return groups(K) * kGroupWords; }

  static void narrow(const float* x, i64 K, u32* out) {
    const i64 all = groups(K);
    float* scales = reinterpret_cast<float*>(out + all * kFours);
    for (i64 g = 0; g < all; g += kSide) {
      const i64 side = smaller(kSide, all - g);
      narrow_side(x + g * kGroup, K - g * kGroup, side, out + g * kFours, scales + g);
    }
  }

  static void pack(const u32* rows, i64 n, i64 K, u32* panel) noexcept {
    const i64 all = groups(K), words = row_words(K);
    for (i64 g = 0; g < all; ++g, panel += kGroupWords) {
      const i64 first = g / kSide * kSide, side = smaller(kSide, all - first);
      float* scales = reinterpret_cast<float*>(panel);
      std::int32_t* starts = reinterpret_cast<std::int32_t*>(panel + kTileColumns);
      for (i64 c = 0; c < kTileColumns; ++c) {
        std::int32_t sum = 0;
        for (i64 j = 0; j < kFours; ++j) {
          const u32 four =
              c < n ? rows[c * words + first * kFours + j * side + g - first] ^ 0x80808080U : 0;
          for (int i = 0; i < 4; ++i) sum += static_cast<std::int8_t>(four >> 8 * i);
          panel[(2 + j) * kTileColumns + c] = four;
        }
        starts[c] = -128 * sum;
        // The matrix that turns has entries of 1 and -1: its square is 32.
        scales[c] = c < n ? read<float>(rows + c * words + all * kFours + g) / 32.f : 0.f;
      }
    }
  }

  template <int kR>
  static void multiply(const u32* x, i64 x_words, const u32* panel, i64 K, float* tile) {
    const i64 all = groups(K);
    const float* scales = reinterpret_cast<const float*>(x + all * kFours);
    F sums[kR][2];
    for (int r = 0; r < kR; ++r) sums[r][0] = sums[r][1] = zero();
    for (i64 first = 0; first < all; first += kSide) {
      const i64 side = smaller(kSide, all - first);
      for (i64 g = first; g < first + side; g += kTogether) {
        const i64 together = smaller(kTogether, first + side - g);
        __m512i left0 = _mm512_loadu_si512(panel + kTileColumns),
                right0 = _mm512_loadu_si512(panel + kTileColumns + kLanes);
        for (i64 k = 1; k < together; ++k) {
          const u32* starts = panel + k * kGroupWords + kTileColumns;
          left0 = _mm512_add_epi32(left0, _mm512_loadu_si512(starts));
          right0 = _mm512_add_epi32(right0, _mm512_loadu_si512(starts + kLanes));
        }
        __m512i left[kR], right[kR];
        for (int r = 0; r < kR; ++r) left[r] = left0, right[r] = right0;
        for (i64 k = 0; k < together; ++k) {
          const u32* fours = x + first * kFours + g + k - first;
#pragma GCC unroll 8
          for (i64 j = 0; j < kFours; ++j) {
            const u32* w = panel + k * kGroupWords + (2 + j) * kTileColumns;
            const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + kLanes);
            for (int r = 0; r < kR; ++r) {
              const __m512i u = _mm512_set1_epi32(read<int>(fours + r * x_words + j * side));
              left[r] = _mm512_dpbusd_epi32(left[r], u, w0);
              right[r] = _mm512_dpbusd_epi32(right[r], u, w1);
            }
          }
        }
        const float* t = reinterpret_cast<const float*>(panel);
        const F t0 = load(t), t1 = load(t + kLanes);
        for (int r = 0; r < kR; ++r) {
          const F s = set1(scales[r * x_words + g]);
          sums[r][0] = fma(_mm512_cvtepi32_ps(left[r]) * t0, s, sums[r][0]);
          sums[r][1] = fma(_mm512_cvtepi32_ps(right[r]) * t1, s, sums[r][1]);
        }
        panel += together * kGroupWords;
      }
    }
    for (int r = 0; r < kR; ++r) {
      store(tile + r * kTileColumns, sums[r][0]);
      store(tile + r * kTileColumns + kLanes, sums[r][1]);
    }
  }

 private:
  // The 32 numbers of `side` groups turned, their scales, and u + 128 in fours [8,side].
  static void narrow_side(const float* x, i64 K, i64 side, u32* out, float* scales) {
    const auto number = [&](i64 i) {
      const i64 left = K - i * side;
      return load_n(x + i * side, left < 0 ? 0 : smaller(side, left));
    };
    alignas(64) float turned[kGroup * kSide];
    __m512i largest = _mm512_setzero_si512();  // as bits: a NaN is above all
    for (int half = 0; half < 2; ++half) {
      F v[16];
      for (int i = 0; i < 16; ++i)
        v[i] = half == 0 ? number(i) + number(i + 16) : number(i) - number(i + 16);
#pragma GCC unroll 4
      for (int step = 8; step > 0; step /= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
          if ((i & step) != 0) continue;
          const F a = v[i], b = v[i + step];
          v[i] = a + b;
          v[i + step] = a - b;
        }
      }
      for (int i = 0; i < 16; ++i) {
        store(turned + (half * 16 + i) * kSide, v[i]);
        largest = _mm512_max_epi32(largest, _mm512_castps_si512(abs(v[i])));
      }
    }
    largest = _mm512_max_epi32(largest, _mm512_shuffle_epi32(largest, _MM_PERM_CDAB));
    largest = _mm512_max_epi32(largest, _mm512_shuffle_epi32(largest, _MM_PERM_BADC));
    const F peak = _mm512_castsi512_ps(largest);
    store_n(scales, peak * set1(1.f / 127.f), side);
    // Groups of zeros, or nearly, become zeros.
    const F inverse =
        _mm512_maskz_div_ps(_mm512_cmp_ps_mask(peak, set1(1e-30f), _CMP_GT_OQ), set1(127.f), peak);
    const __mmask16 lanes = first(side);
    for (i64 j = 0; j < kFours; ++j) {
      const auto code = [&](i64 i) {
        const __m512i u = _mm512_cvtps_epi32(load(turned + (4 * j + i) * kSide) * inverse);
        return _mm512_add_epi32(u, _mm512_set1_epi32(128));
      };
      const __m512i low = _mm512_or_si512(code(0), _mm512_slli_epi32(code(1), 8));
      const __m512i high = _mm512_or_si512(code(2), _mm512_slli_epi32(code(3), 8));
      _mm512_mask_storeu_epi32(out + j * side, lanes,
                               _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
};

#elif defined(__AVX2__)

struct NarrowInt16 {
  static constexpr int kRows = 4;  // more, and the compiler runs out of registers
  static constexpr i64 kLargest = 2047,
                       kExact = 256;  // 512 products of that size add up to less than 2^31
  static i64 pairs(i64 K) { return (K + 1) / 2; }
  static i64 row_words(i64 K) { return spread(pairs(K) + 1); }
  static i64 panel_words(i64 K) { return (1 + pairs(K)) * kTileColumns; }

  static void narrow(const float* x, i64 K, u32* out) {
    __m256i largest = _mm256_setzero_si256();  // as bits: a NaN is above all
    for (i64 k = 0; k < K; k += kLanes) {
      const F v = load_n(x + k, smaller(kLanes, K - k));
      largest = _mm256_max_epi32(largest, _mm256_castps_si256(abs(v)));
    }
    __m128i four =
        _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    const float peak = _mm_cvtss_f32(_mm_castsi128_ps(four));
    // A row of zeros, or nearly, becomes zeros.
    const F inverse = set1(peak > 1e-30f ? static_cast<float>(kLargest) / peak : 0.f);
    u16* to = reinterpret_cast<u16*>(out);
    for (i64 k = 0; k < K; k += kLanes) {
      const i64 n = smaller(kLanes, K - k);
      const __m256i u = _mm256_cvtps_epi32(load_n(x + k, n) * inverse);
      const __m128i narrow =
          _mm_packs_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1));
      n == kLanes ? _mm_storeu_si128(reinterpret_cast<__m128i*>(to + k), narrow)
                  : store_u16_n(to + k, narrow, n);
    }
    if (K % 2 != 0) to[K] = 0;
    const float scale = peak / static_cast<float>(kLargest);
    std::memcpy(out + pairs(K), &scale, sizeof scale);
  }
  static void pack(const u32* rows, i64 n, i64 K, u32* panel) noexcept {
    for (i64 c = 0; c < kTileColumns; ++c) panel[c] = c < n ? rows[c * row_words(K) + pairs(K)] : 0;
    transpose_words(rows, row_words(K), n, pairs(K), panel + kTileColumns);
  }
  template <int kR>
  static void multiply(const u32* x, i64 x_words, const u32* panel, i64 K, float* tile) {
    const i64 steps = pairs(K);
    const float* t = reinterpret_cast<const float*>(panel);
    panel += kTileColumns;
    for (i64 begin = 0; begin == 0 || begin < steps; begin += kExact) {
      __m256i left[kR], right[kR];
      for (int r = 0; r < kR; ++r) left[r] = right[r] = _mm256_setzero_si256();
      for (i64 s = begin; s < smaller(steps, begin + kExact); ++s) {
        const auto* w = reinterpret_cast<const __m256i*>(panel + s * kTileColumns);
        const __m256i w0 = _mm256_loadu_si256(w), w1 = _mm256_loadu_si256(w + 1);
        for (int r = 0; r < kR; ++r) {
          const __m256i u = _mm256_set1_epi32(read<int>(x + r * x_words + s));
          left[r] = _mm256_add_epi32(left[r], _mm256_madd_epi16(u, w0));
          right[r] = _mm256_add_epi32(right[r], _mm256_madd_epi16(u, w1));
        }
      }
      for (int r = 0; r < kR; ++r) {
        const F s = set1(read<float>(x + r * x_words + steps));
        float* to = tile + r * kTileColumns;
        const F a = _mm256_cvtepi32_ps(left[r]) * (s * load(t)),
                b = _mm256_cvtepi32_ps(right[r]) * (s * load(t + kLanes));
        store(to, begin == 0 ? a : a + load(to));
        store(to + kLanes, begin == 0 ? b : b + load(to + kLanes));
      }
    }
  }
};

#endif

// Indexed by NarrowType.
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define MNEME_NARROW_KERNELS {kNarrow<NarrowBf16>, {}, kNarrow<NarrowInt8>}
#elif defined(__AVX2__)
#define MNEME_NARROW_KERNELS     \
  {                              \
    {}, kNarrow<NarrowInt16>, {} \
  }
#else
#define MNEME_NARROW_KERNELS \
  {                          \
  }
#endif

}  // namespace mneme::kernels::MNEME_LEVEL
