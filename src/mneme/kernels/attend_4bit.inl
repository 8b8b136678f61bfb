// Codes of 4 bits under attention as whole numbers, where one instruction multiplies and adds pairs of 16 bits (VNNI). What
// codes meet is rounded to 16 bits of a common unit:
//
//   x_i ~ unit whole_i,   unit = max |x| / 32767,   sum_i x_i code_i ~ unit sum_i whole_i code_i
//
//   keys      x_c = q_c scale_c of 32 entries      one entry a lane, pairs of channels
//   values    x_e = w_e scale_eg of group g        four channels a lane, pairs of entries
//
// Codes round a number to a fifteenth of its range, this to a 65,000th. Of the two codes in a byte the upper one is multiplied
// where it stands, sixteen times too large, and apart from the lower ones.
#pragma once

#include "mneme/kernels/attend_quantized.inl"

namespace mneme::kernels::MNEME_LEVEL {

#if defined(__AVX512VNNI__)

inline constexpr float kMostRounded = 32767;
// With less than this the unit's inverse leaves the range of f32.
inline constexpr float kLeastMagnitude = 1e-30f;

// Magnitudes as bits, whose largest one is NaN where any is: a number that is broken must reach the result.
inline __m512i magnitudes(F x) { return _mm512_castps_si512(abs(x)); }

inline F unit_of(F magnitude) { return magnitude * set1(1.f / kMostRounded); }
inline F inverse_unit(F magnitude) {
  return _mm512_div_ps(set1(kMostRounded), max(magnitude, set1(kLeastMagnitude)));
}

// Rounded to 16 bits each.
inline __m256i whole_numbers(F numbers, F inverse) {
  return _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(numbers * inverse));
}

// Four codes of every 16 bits, in order: the even ones as they are, the odd ones times 16.
struct FourCodes {
  __m512i code[4];

  explicit FourCodes(__m512i words) {
    const __m512i low = _mm512_set1_epi16(0x0f), high = _mm512_set1_epi16(0xf0);
    const __m512i later = _mm512_srli_epi16(words, 8);
    code[0] = _mm512_and_si512(words, low);
    code[1] = _mm512_and_si512(words, high);
    code[2] = _mm512_and_si512(later, low);
    code[3] = _mm512_and_si512(later, high);
  }
};

// Queries in the order in which a word of eight codes has them: 0 and 4, 1 and 5, 2 and 6, 3 and 7.
template <int kR>
struct WholeQueries {
  std::int16_t of[kR][kMostHeadWidth + kLanes];
};

// dots[r] = units[r] sum_i queries[r][i] code_i over the words of kLanes rows.
template <int kR>
inline void whole_dots(const Words* words, i64 count, const WholeQueries<kR>& queries,
                       const F (&units)[kR], Ahead& ahead, F (&dots)[kR]) {
  __m512i even[kR], odd[kR];
  for (int r = 0; r < kR; ++r) even[r] = odd[r] = _mm512_setzero_si512();
  for (i64 w = 0; w < count; ++w) {
    ahead.fetch_line();  // as many bytes as there are codes
    const FourCodes pairs(reinterpret_cast<__m512i>(words[w]));
    for (int r = 0; r < kR; ++r) {
      const auto query = [&](int pair) {
        return _mm512_set1_epi32(read<int>(queries.of[r] + 8 * w + 2 * pair));
      };
      even[r] = _mm512_dpwssd_epi32(even[r], pairs.code[0], query(0));
      odd[r] = _mm512_dpwssd_epi32(odd[r], pairs.code[1], query(1));
      even[r] = _mm512_dpwssd_epi32(even[r], pairs.code[2], query(2));
      odd[r] = _mm512_dpwssd_epi32(odd[r], pairs.code[3], query(3));
    }
  }
  for (int r = 0; r < kR; ++r) {
    const F sixteenth = _mm512_cvtepi32_ps(odd[r]) * set1(1.f / 16);
    dots[r] = (_mm512_cvtepi32_ps(even[r]) + sixteenth) * units[r];
  }
}

// What `join` makes of all even lanes, in all of these, and so of the odd ones.
template <class V, class Join>
inline V by_group(V x, const Join& join) {
  const auto turned = [&](auto turn) {
    return reinterpret_cast<V>(turn(reinterpret_cast<__m512i>(x)));
  };
  x = join(x, turned([](__m512i y) { return _mm512_shuffle_i32x4(y, y, 0b01001110); }));
  x = join(x, turned([](__m512i y) { return _mm512_shuffle_i32x4(y, y, 0b10110001); }));
  return join(x, turned([](__m512i y) { return _mm512_shuffle_epi32(y, _MM_PERM_BADC); }));
}

inline __m512i larger(__m512i x, __m512i y) { return _mm512_max_epi32(x, y); }

// The largest lane, everywhere.
inline F largest_everywhere(__m512i magnitudes) {
  const __m512i both = by_group(magnitudes, larger);
  return _mm512_castsi512_ps(larger(both, _mm512_shuffle_epi32(both, _MM_PERM_CDAB)));
}

// As channel_scores().
template <int kR>
inline void rounded_channel_scores(const PageView& page, i64 d, const float* queries, i64 q_stride,
                                   float* folded, Ahead& ahead, float* scores) {
  constexpr i64 kGroup = group_size(NumberCodec::channel4);
  const __m256i pairs = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
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
        most[r] = larger(most[r], magnitudes(x));
      }
    }
    float base[4];
    store_sums(base, sums[0], sums[1], sums[2], sums[3]);
    F units[kR];
    for (int r = 0; r < kR; ++r) {
      const F magnitude = largest_everywhere(most[r]), inverse = inverse_unit(magnitude);
      units[r] = unit_of(magnitude);
      for (i64 i = 0; i < d; i += kLanes) {
        const __m256i x = whole_numbers(load(folded + r * q_stride + i), inverse);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(whole.of[r] + i),
                            _mm256_shuffle_epi8(x, pairs));
      }
    }
    float* to = scores + (begin - page.first);
    rows_in_lanes(m.codes + begin * m.row_bytes, m.row_bytes, next - begin,
                  [&](const u8* codes, i64 e, i64 n) {
                    for (i64 i = 0; i < m.row_bytes; i += 16) ahead.fetch_line();  // scales
                    SideBySide side;
                    transpose_rows(codes, m.row_bytes, side);
                    F dots[kR];
                    whole_dots<kR>(side.words, m.row_bytes / 4, whole, units, ahead, dots);
                    for (int r = 0; r < kR; ++r)
                      store_scores(to + r * kPageEntries + e, dots[r] + set1(base[r]), n);
                  });
    begin = next;
  }
}

// Values are read two groups at a time: numbers of the first one stand in even lanes, of the second one in odd lanes.

// Of up to kLanes / 2 entries the scales (or minima) of one or two groups that follow each other, `step` from entry to entry.
template <int kGroups>
inline F load_by_entries(const u16* x, i64 step, i64 entries) {
  if (kGroups == 2 && step == 2) return load_f16_n(x, 2 * entries);
  u16 pairs[kLanes] = {};
  for (i64 e = 0; e < entries; ++e) {
    for (i64 g = 0; g < kGroups; ++g) pairs[2 * e + g] = x[e * step + g];
  }
  return load_f16(pairs);
}

// Weights times the scales of two groups, and what the minima of a group add up to.
template <int kR>
struct WholeWeights {
  std::int16_t of[kR][kPageEntries / 2]
                 [4];       // of a pair of entries by the first group, then by the second
  F unit[kR], minimum[kR];  // by group
};

template <int kR, int kGroups>
inline void whole_weights(const Encoded& m, i64 first, i64 group, i64 entries, const float* weights,
                          Ahead& ahead, WholeWeights<kR>& out) {
  constexpr i64 kAtATime = kLanes / 2;
  const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  const __m256i pairs = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  F scaled[kR][kPageEntries / kAtATime], minima[kR];
  __m512i most[kR];
  for (int r = 0; r < kR; ++r) minima[r] = zero(), most[r] = _mm512_setzero_si512();
  for (i64 e = 0, v = 0; e < entries; e += kAtATime, ++v) {
    const i64 n = smaller(kAtATime, entries - e), at = (first + e) * m.groups + group;
    ahead.fetch_line();  // scales of as many entries
    const F scale = load_by_entries<kGroups>(m.scale + at, m.groups, n),
            minimum = load_by_entries<kGroups>(m.minimum + at, m.groups, n);
    for (int r = 0; r < kR; ++r) {
      const __m256 once = _mm256_loadu_ps(weights + r * kPageEntries + e);  // zero past the last
      const F w = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(once));
      scaled[r][v] = w * scale;
      minima[r] = fma(w, minimum, minima[r]);
      most[r] = larger(most[r], magnitudes(scaled[r][v]));
    }
  }
  for (int r = 0; r < kR; ++r) {
    const F magnitude = _mm512_castsi512_ps(by_group(most[r], larger));
    const F inverse = inverse_unit(magnitude);
    out.unit[r] = unit_of(magnitude);
    out.minimum[r] = by_group(minima[r], [](F x, F y) { return x + y; });
    for (i64 e = 0, v = 0; e < entries; e += kAtATime, ++v)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.of[r][e / 2]),
                          _mm256_shuffle_epi8(whole_numbers(scaled[r][v], inverse), pairs));
  }
}

// sums[r] = sums[r] fade[r] + sum_e weights[r][e] v_e of one or two whole groups from `group` on.
template <int kR, int kGroups>
inline void add_groups(const PageView& page, const Encoded& m, i64 group, const float* weights,
                       const float* fade, Ahead& ahead, float* sums, i64 q_stride) {
  constexpr i64 kGroup = group_size(NumberCodec::group4);
  // Of two entries the i-th 16 bits in each group: beside each other.
  const __m512i order = _mm512_set_epi16(31, 15, 23, 7, 30, 14, 22, 6, 29, 13, 21, 5, 28, 12, 20, 4,
                                         27, 11, 19, 3, 26, 10, 18, 2, 25, 9, 17, 1, 24, 8, 16, 0);
  WholeWeights<kR> whole;
  whole_weights<kR, kGroups>(m, page.first, group, page.entries, weights, ahead, whole);
  const u8* codes = m.codes + page.first * m.row_bytes + group * kGroup / 2;
  const auto row = [&](i64 e) {
    const auto* p = codes + smaller(e, page.entries - 1) * m.row_bytes;
    return kGroups == 2
               ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
               : _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  };
  __m512i acc[kR][4];
  for (int r = 0; r < kR; ++r) {
    for (auto& x : acc[r]) x = _mm512_setzero_si512();
  }
  for (i64 e = 0; e < page.entries; e += 2) {
    ahead.fetch_line();  // codes
    const __m512i two = _mm512_inserti64x4(_mm512_castsi256_si512(row(e)), row(e + 1), 1);
    const FourCodes pairs(_mm512_permutexvar_epi16(order, two));
    for (int r = 0; r < kR; ++r) {
      const __m512i w = _mm512_set1_epi64(read<long long>(whole.of[r][e / 2]));
      for (int c = 0; c < 4; ++c) acc[r][c] = _mm512_dpwssd_epi32(acc[r][c], pairs.code[c], w);
    }
  }
  const __m512i lower = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i upper = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int r = 0; r < kR; ++r) {
    // Lane 2 i + g holds channel 4 i + c of group g.
    const auto channel = [&](int c) {
      const F unit = c % 2 == 0 ? whole.unit[r] : whole.unit[r] * set1(1.f / 16);
      return fma(_mm512_cvtepi32_ps(acc[r][c]), unit, whole.minimum[r]);
    };
    const F x0 = channel(0), x1 = channel(1), x2 = channel(2), x3 = channel(3);
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(x0, x1)),
                  low23 = _mm512_castps_pd(_mm512_unpacklo_ps(x2, x3)),
                  high01 = _mm512_castps_pd(_mm512_unpackhi_ps(x0, x1)),
                  high23 = _mm512_castps_pd(_mm512_unpackhi_ps(x2, x3));
    const F f = set1(fade[r]);
    const auto add = [&](float* to, __m512d even, __m512d odd) {
      const F first = _mm512_castpd_ps(_mm512_permutex2var_pd(even, lower, odd)),
              second = _mm512_castpd_ps(_mm512_permutex2var_pd(even, upper, odd));
      store(to, fma(load(to), f, first));
      store(to + kLanes, fma(load(to + kLanes), f, second));
    };
    float* to = sums + r * q_stride + group * kGroup;
    add(to, _mm512_unpacklo_pd(low01, low23), _mm512_unpacklo_pd(high01, high23));
    if constexpr (kGroups == 2)
      add(to + kGroup, _mm512_unpackhi_pd(low01, low23), _mm512_unpackhi_pd(high01, high23));
  }
}

// As add_nibbles().
template <int kR>
inline void add_rounded_values(const PageView& page, i64 d, const float* weights, const float* fade,
                               Ahead& ahead, float* sums, i64 q_stride) {
  constexpr i64 kGroup = group_size(NumberCodec::group4);
  const Encoded m = sections<NumberCodec::group4>(page.v, page.encoded, d);
  i64 group = 0;
  for (; (group + 2) * kGroup <= d; group += 2)
    add_groups<kR, 2>(page, m, group, weights, fade, ahead, sums, q_stride);
  if ((group + 1) * kGroup <= d) {
    add_groups<kR, 1>(page, m, group, weights, fade, ahead, sums, q_stride);
    ++group;
  }
  // A last group that is short.
  if (const i64 i = group * kGroup; i < d)
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
