// Codes of 4 bits under attention as whole numbers, where an instruction takes 64 products of bytes (VNNI). What codes meet
// is rounded to 16 bits of a common unit, signed high and low bytes of it apart:
//
//   x_i ~ unit (256 high_i + low_i),   unit = max |x| / 32639
//   sum_i x_i code_i ~ unit (256 sum_i high_i code_i + sum_i low_i code_i)
//
//   keys      x_c = q_c scale_c of 32 entries      one entry a lane
//   values    x_e = w_e scale_eg of group g        one channel a lane, codes of four entries side by side
//
// Codes round a number to a fifteenth of its range, this to a 65,000th.
#pragma once

#include "mneme/kernels/attend_quantized.inl"

namespace mneme::kernels::MNEME_LEVEL {

#if defined(__AVX512VNNI__)

inline constexpr float kMostRounded = 127 * 256 + 127;
// With less than this the unit's inverse leaves the range of f32.
inline constexpr float kLeastMagnitude = 1e-30f;

// Magnitudes as bits, whose largest one is NaN where any is: a number that is broken must reach the result.
inline __m512i magnitudes(F x) { return _mm512_castps_si512(abs(x)); }

// Of up to four rows the unit that their numbers are rounded in, and its inverse, from the largest magnitudes by lane.
struct Units4 {
  float unit[4], inverse[4];

  explicit Units4(const __m512i (&most)[4]) {
    const auto halved = [](__m512i v) {
      const __m256i eight =
          _mm256_max_epi32(_mm512_castsi512_si256(v), _mm512_extracti32x8_epi32(v, 1));
      return _mm_castsi128_ps(
          _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1)));
    };
    __m128 w = halved(most[0]), x = halved(most[1]), y = halved(most[2]), z = halved(most[3]);
    _MM_TRANSPOSE4_PS(w, x, y, z);
    const auto larger = [](__m128 p, __m128 q) {
      return _mm_castsi128_ps(_mm_max_epi32(_mm_castps_si128(p), _mm_castps_si128(q)));
    };
    const __m128 magnitude = larger(larger(w, x), larger(y, z));
    _mm_storeu_ps(unit, _mm_mul_ps(magnitude, _mm_set1_ps(1.f / kMostRounded)));
    _mm_storeu_ps(inverse, _mm_div_ps(_mm_set1_ps(kMostRounded),
                                      _mm_max_ps(magnitude, _mm_set1_ps(kLeastMagnitude))));
  }
};

struct HighAndLow {
  __m128i high, low;
};

inline HighAndLow high_and_low(F numbers, F inverse) {
  const __m512i x = _mm512_cvtps_epi32(numbers * inverse);
  const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
  return {_mm512_cvtepi32_epi8(high), _mm512_cvtepi32_epi8(x)};
}

inline F joined(__m512i high, __m512i low) {
  return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
}

inline __m512i even_codes(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(0x0f)); }
inline __m512i odd_codes(__m512i bytes) { return even_codes(_mm512_srli_epi16(bytes, 4)); }

inline __m512i four_everywhere(const u8* bytes) { return _mm512_set1_epi32(read<int>(bytes)); }

// Queries as a word of codes meets them: of eight numbers the even ones, then the odd ones.
template <int kR>
struct WholeQueries {
  u8 high[kR][kMostHeadWidth + kLanes], low[kR][kMostHeadWidth + kLanes];
};

// dots[r] = unit[r] sum_i queries[r][i] code_i over the words of kLanes rows.
template <int kR>
inline void whole_dots(const Words* words, i64 count, const WholeQueries<kR>& queries,
                       const float* unit, Ahead& ahead, F (&dots)[kR]) {
  constexpr int kChains = kR <= 2 ? 2 : 1;  // as many sums as hide how long an instruction takes
  __m512i high[kChains][kR], low[kChains][kR];
  for (int c = 0; c < kChains; ++c) {
    for (int r = 0; r < kR; ++r) high[c][r] = low[c][r] = _mm512_setzero_si512();
  }
  for (i64 w = 0; w < count; ++w) {
    // As many bytes as there are codes, and a quarter for scales.
    ahead.fetch_next(kLanes * 4 * 5 / 4);
    const __m512i even = even_codes(reinterpret_cast<__m512i>(words[w])),
                  odd = odd_codes(reinterpret_cast<__m512i>(words[w]));
    for (int r = 0; r < kR; ++r) {
      __m512i &high_odd = high[kChains - 1][r], &low_odd = low[kChains - 1][r];
      high[0][r] = _mm512_dpbusd_epi32(high[0][r], even, four_everywhere(queries.high[r] + 8 * w));
      low[0][r] = _mm512_dpbusd_epi32(low[0][r], even, four_everywhere(queries.low[r] + 8 * w));
      high_odd = _mm512_dpbusd_epi32(high_odd, odd, four_everywhere(queries.high[r] + 8 * w + 4));
      low_odd = _mm512_dpbusd_epi32(low_odd, odd, four_everywhere(queries.low[r] + 8 * w + 4));
    }
  }
  for (int r = 0; r < kR; ++r) {
    if constexpr (kChains == 2) {
      high[0][r] = _mm512_add_epi32(high[0][r], high[1][r]);
      low[0][r] = _mm512_add_epi32(low[0][r], low[1][r]);
    }
    dots[r] = joined(high[0][r], low[0][r]) * set1(unit[r]);
  }
}

// As channel_scores().
template <int kR>
inline void rounded_channel_scores(const PageView& page, i64 d, const float* queries, i64 q_stride,
                                   float* folded, Ahead& ahead, float* scores) {
  constexpr i64 kGroup = group_size(NumberCodec::channel4);
  const __m128i even_first = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  const Encoded m = sections<NumberCodec::channel4>(page.k, page.encoded, d);
  const i64 end = page.first + page.entries;
  WholeQueries<kR> whole;
  for (i64 begin = page.first; begin < end;) {
    const i64 group = begin / kGroup, next = smaller(end, (group + 1) * kGroup);
    F sums[4] = {zero(), zero(), zero(), zero()};
    __m512i most[4] = {};
    for (i64 i = 0; i < d; i += kLanes) {
      const i64 n = smaller(kLanes, d - i);
      const F scale = load_f16_n(m.scale + group * d + i, n),
              minimum = load_f16_n(m.minimum + group * d + i, n);
      for (int r = 0; r < kR; ++r) {
        const F q = load(queries + r * q_stride + i), x = q * scale;
        store(folded + r * q_stride + i, x);
        sums[r] = fma(q, minimum, sums[r]);
        most[r] = _mm512_max_epi32(most[r], magnitudes(x));
      }
    }
    float base[4];
    store_sums(base, sums[0], sums[1], sums[2], sums[3]);
    const Units4 units(most);
    for (int r = 0; r < kR; ++r) {
      const F inverse = set1(units.inverse[r]);
      for (i64 i = 0; i < d; i += kLanes) {
        const HighAndLow x = high_and_low(load(folded + r * q_stride + i), inverse);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(whole.high[r] + i),
                         _mm_shuffle_epi8(x.high, even_first));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(whole.low[r] + i),
                         _mm_shuffle_epi8(x.low, even_first));
      }
    }
    float* to = scores + (begin - page.first);
    rows_in_lanes(m.codes + begin * m.row_bytes, m.row_bytes, next - begin,
                  [&](const u8* codes, i64 e, i64 n) {
                    SideBySide side;
                    transpose_rows(codes, m.row_bytes, side);
                    F dots[kR];
                    whole_dots<kR>(side.words, m.row_bytes / 4, whole, units.unit, ahead, dots);
                    for (int r = 0; r < kR; ++r)
                      store_scores(to + r * kPageEntries + e, dots[r] + set1(base[r]), n);
                  });
    begin = next;
  }
}

// The codes of four entries at 16 bytes each: byte b of all four in lane b.
inline __m512i side_by_side(const u8* codes, i64 row_bytes, i64 entries) {
  const auto row = [&](i64 e) {
    return _mm_loadu_si128(
        reinterpret_cast<const __m128i*>(codes + smaller(e, entries - 1) * row_bytes));
  };
  __m512i x = _mm512_castsi128_si512(row(0));
  x = _mm512_inserti32x4(x, row(1), 1);
  x = _mm512_inserti32x4(x, row(2), 2);
  x = _mm512_inserti32x4(x, row(3), 3);
  const __m512i words = _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), x);
  return _mm512_shuffle_epi8(words, _mm512_broadcast_i32x4(_mm_setr_epi8(
                                        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
}

// Weights times the scales of one group, and what the minima of the group add up to.
template <int kR>
struct WholeWeights {
  u8 high[kR][kPageEntries], low[kR][kPageEntries];
  float unit[kR], minimum[4];
};

template <int kR>
inline void whole_weights(const Encoded& m, i64 first, i64 group, i64 entries, const float* weights,
                          WholeWeights<kR>& out) {
  F scaled[kR][kPageEntries / kLanes], minima[4] = {zero(), zero(), zero(), zero()};
  __m512i most[4] = {};
  for (i64 e = 0, v = 0; e < entries; e += kLanes, ++v) {
    const i64 n = smaller(kLanes, entries - e), at = (first + e) * m.groups;
    const F scale = load_f16_apart(m.scale + at, group, m.groups, n),
            minimum = load_f16_apart(m.minimum + at, group, m.groups, n);
    for (int r = 0; r < kR; ++r) {
      const F w = load(weights + r * kPageEntries + e);  // zero past the last entry
      scaled[r][v] = w * scale;
      minima[r] = fma(w, minimum, minima[r]);
      most[r] = _mm512_max_epi32(most[r], magnitudes(scaled[r][v]));
    }
  }
  const Units4 units(most);
  store_sums(out.minimum, minima[0], minima[1], minima[2], minima[3]);
  for (int r = 0; r < kR; ++r) {
    out.unit[r] = units.unit[r];
    const F inverse = set1(units.inverse[r]);
    for (i64 e = 0, v = 0; e < entries; e += kLanes, ++v) {
      const HighAndLow x = high_and_low(scaled[r][v], inverse);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out.high[r] + e), x.high);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out.low[r] + e), x.low);
    }
  }
}

// As add_nibbles().
template <int kR>
inline void add_rounded_values(const PageView& page, i64 d, const float* weights, const float* fade,
                               Ahead& ahead, float* sums, i64 q_stride) {
  constexpr i64 kGroup = group_size(NumberCodec::group4);
  const __m512i lower = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
  const Encoded m = sections<NumberCodec::group4>(page.v, page.encoded, d);
  for (i64 i = 0, group = 0; i + kGroup <= d; i += kGroup, ++group) {
    WholeWeights<kR> whole;
    whole_weights<kR>(m, page.first, group, page.entries, weights, whole);
    __m512i high[kR][2], low[kR][2];  // of even channels, of odd ones
    for (int r = 0; r < kR; ++r)
      high[r][0] = high[r][1] = low[r][0] = low[r][1] = _mm512_setzero_si512();
    const u8* codes = m.codes + page.first * m.row_bytes + i / 2;
    for (i64 e = 0; e < page.entries; e += 4) {
      ahead.fetch_next(4 * (kGroup / 2) * 5 / 4);
      const __m512i bytes = side_by_side(codes + e * m.row_bytes, m.row_bytes, page.entries - e);
      const __m512i even = even_codes(bytes), odd = odd_codes(bytes);
      for (int r = 0; r < kR; ++r) {
        const __m512i h = four_everywhere(whole.high[r] + e), l = four_everywhere(whole.low[r] + e);
        high[r][0] = _mm512_dpbusd_epi32(high[r][0], even, h);
        high[r][1] = _mm512_dpbusd_epi32(high[r][1], odd, h);
        low[r][0] = _mm512_dpbusd_epi32(low[r][0], even, l);
        low[r][1] = _mm512_dpbusd_epi32(low[r][1], odd, l);
      }
    }
    for (int r = 0; r < kR; ++r) {
      const F even = joined(high[r][0], low[r][0]), odd = joined(high[r][1], low[r][1]);
      const F unit = set1(whole.unit[r]), minimum = set1(whole.minimum[r]), f = set1(fade[r]);
      const auto add = [&](float* to, __m512i channels) {
        const F x = fma(_mm512_permutex2var_ps(even, channels, odd), unit, minimum);
        store(to, fma(load(to), f, x));
      };
      add(sums + r * q_stride + i, lower);
      add(sums + r * q_stride + i + kLanes, upper);
    }
  }
  // A last group that is short.
  if (const i64 i = d / kGroup * kGroup; i < d)
    add_coded_values<Nibbles, kR>(page, d, weights, fade, ahead, sums, q_stride, i);
}

#else

// Elsewhere nothing is gained by rounding.
template <int kR>
inline void rounded_channel_scores(const PageView& page, i64 d, const float* queries, i64 q_stride,
                                   float* folded, Ahead& ahead, float* scores) {
  channel_scores<kR>(page, d, queries, q_stride, folded, ahead, scores);
}
template <int kR>
inline void add_rounded_values(const PageView& page, i64 d, const float* weights, const float* fade,
                               Ahead& ahead, float* sums, i64 q_stride) {
  add_nibbles<kR>(page, d, weights, fade, ahead, sums, q_stride);
}

#endif

}  // namespace mneme::kernels::MNEME_LEVEL
