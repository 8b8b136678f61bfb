// Encoded keys and values (codec.h) under attention. Few rows read the codes as they lie:
//
//   keys, channel4   q'k_e = sum_c (q_c scale_c) code_ec + sum_c q_c min_c              for each 32 entries
//   keys, group8     q'k_e = sum_g (scale_eg sum_c q_c code_ec + min_eg sum_c q_c)      c of group g
//   values           out  += w_e x_e,  x_ec = code_ec scale_eg + min_eg
//
// Scores have one entry a lane: no sum runs across lanes, and a query's number is the same for all of them. The words of
// codes that this takes side by side are transposed once for all rows. Values have their lanes along d.
#pragma once

#include "mneme/kernels/codec.h"
#include "mneme/kernels/codec.inl"

namespace mneme::kernels::MNEME_LEVEL {

// The sections of an encoded matrix [T,d].
struct Encoded {
  const u16 *scale, *minimum;
  const u8* codes;
  i64 groups;  // scales of a row, or of 32 rows of channel4
  i64 row_bytes, bytes;
};

template <NumberCodec kCodec>
inline Encoded sections(const void* matrix, i64 T, i64 d) {
  constexpr int kBits = code_bits(kCodec);
  constexpr i64 kGroup = group_size(kCodec);
  constexpr bool kChannels = kCodec == NumberCodec::channel4;
  Encoded m{};
  m.groups = kChannels ? d : (d + kGroup - 1) / kGroup;
  m.row_bytes = d * kBits / 8;
  const i64 scales = (kChannels ? (T + kGroup - 1) / kGroup : T) * m.groups;
  m.scale = static_cast<const u16*>(matrix);
  m.minimum = m.scale + scales;
  m.codes = static_cast<const u8*>(matrix) + 4 * scales;
  m.bytes = 4 * scales + T * m.row_bytes;
  return m;
}

inline i64 encoded_matrix_bytes(NumberCodec codec, i64 T, i64 d) {
  using enum NumberCodec;
  if (codec == group8) return sections<group8>(nullptr, T, d).bytes;
  return codec == group4 ? sections<group4>(nullptr, T, d).bytes
                         : sections<channel4>(nullptr, T, d).bytes;
}

template <NumberCodec kCodec>
inline void unpack_entries(const void* matrix, const PageView& page, i64 d, float* out) {
  constexpr i64 kGroup = group_size(kCodec);
  const Encoded m = sections<kCodec>(matrix, page.encoded, d);
  const i64 end = page.first + page.entries;
  for (i64 e = page.first; e < end;) {
    const u8* codes = m.codes + e * m.row_bytes;
    float* to = out + (e - page.first) * d;
    if constexpr (kCodec == NumberCodec::channel4) {
      const i64 group = e / kGroup, next = smaller(end, (group + 1) * kGroup);
      decode_channels_as<AsF32>(codes, next - e, d, m.scale + group * d, m.minimum + group * d, to,
                                d);
      e = next;
    } else {
      decode_row_as<AsF32, code_bits(kCodec)>(codes, d, kGroup, m.scale + e * m.groups,
                                              m.minimum + e * m.groups, to);
      ++e;
    }
  }
}

// The entries of an encoded page as numbers [entries,d].
inline void unpack_page(const void* matrix, NumberCodec codec, const PageView& page, i64 d,
                        float* out) {
  using enum NumberCodec;
  if (codec == group8) unpack_entries<group8>(matrix, page, d, out);
  if (codec == group4) unpack_entries<group4>(matrix, page, d, out);
  if (codec == channel4) unpack_entries<channel4>(matrix, page, d, out);
}

// ---- scores: one entry a lane ----

inline constexpr i64 kMostRowBytes = 256;

using Words = u32 __attribute__((vector_size(4 * kLanes)));

// words[j] = word j of each of kLanes rows, for n <= 4 words; those past n are anything.
#if defined(__AVX512F__) || defined(__AVX2__)
inline void load_words(const u8* rows, i64 row_bytes, i64 n, Words* words) {
  const auto row = [&](i64 i) {
    const auto* p = reinterpret_cast<const int*>(rows + i * row_bytes);
    if (n == 4) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
#if defined(__AVX512F__)
    return _mm_maskz_loadu_epi32(static_cast<__mmask8>((1U << n) - 1U), p);
#else
    const __m128i wanted =
        _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(n)), _mm_setr_epi32(0, 1, 2, 3));
    return _mm_maskload_epi32(p, wanted);
#endif
  };
  // Quarter q of vector i is row 4q + i, so that transposing the quarters leaves the rows in order.
#if defined(__AVX512F__)
  const auto rows_from = [&](i64 i) {
    __m512i v = _mm512_castsi128_si512(row(i));
    v = _mm512_inserti32x4(v, row(i + 4), 1);
    v = _mm512_inserti32x4(v, row(i + 8), 2);
    return _mm512_inserti32x4(v, row(i + 12), 3);
  };
  const __m512i a = rows_from(0), b = rows_from(1), c = rows_from(2), d = rows_from(3);
  const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
  const __m512i ab_high = _mm512_unpackhi_epi32(a, b), cd_high = _mm512_unpackhi_epi32(c, d);
  words[0] = reinterpret_cast<Words>(_mm512_unpacklo_epi64(ab, cd));
  words[1] = reinterpret_cast<Words>(_mm512_unpackhi_epi64(ab, cd));
  words[2] = reinterpret_cast<Words>(_mm512_unpacklo_epi64(ab_high, cd_high));
  words[3] = reinterpret_cast<Words>(_mm512_unpackhi_epi64(ab_high, cd_high));
#else
  const auto rows_from = [&](i64 i) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(row(i)), row(i + 4), 1);
  };
  const __m256i a = rows_from(0), b = rows_from(1), c = rows_from(2), d = rows_from(3);
  const __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
  const __m256i ab_high = _mm256_unpackhi_epi32(a, b), cd_high = _mm256_unpackhi_epi32(c, d);
  words[0] = reinterpret_cast<Words>(_mm256_unpacklo_epi64(ab, cd));
  words[1] = reinterpret_cast<Words>(_mm256_unpackhi_epi64(ab, cd));
  words[2] = reinterpret_cast<Words>(_mm256_unpacklo_epi64(ab_high, cd_high));
  words[3] = reinterpret_cast<Words>(_mm256_unpackhi_epi64(ab_high, cd_high));
#endif
}
#else
inline void load_words(const u8* rows, i64 row_bytes, i64 n, Words* words) {
  for (i64 j = 0; j < n; ++j) {
    for (i64 i = 0; i < kLanes; ++i) words[j][i] = read<u32>(rows + i * row_bytes + 4 * j);
  }
}
#endif

// Code `place` of each word, as numbers times the unit of the place.
template <int kBits>
inline F code_at(Words words, int place) {
  using I = std::int32_t __attribute__((vector_size(4 * kLanes)));
  const bool last = place == 32 / kBits - 1;
  const u32 mask = ((1U << kBits) - 1) << (kBits * place);
  return __builtin_convertvector(reinterpret_cast<I>(last ? words >> kBits * place : words & mask),
                                 F);
}

// Codes stay where they are in their word, but for the last one, which would be taken for a sign: so one divided by what
// the codes of a word are multiplied by, repeated.
template <int kBits>
struct Units {
  static constexpr int kCodes = 32 / kBits;
  float inverse[kCodes + kLanes];
  constexpr Units() : inverse() {
    for (int i = 0; i < kCodes + kLanes; ++i)
      inverse[i] =
          i % kCodes == kCodes - 1 ? 1.f : 1.f / static_cast<float>(1 << i % kCodes * kBits);
  }
};
template <int kBits>
inline constexpr Units<kBits> kUnits;

// For numbers i.. of a row.
template <int kBits>
inline F inverse_units(i64 i) {
  return load(kUnits<kBits>.inverse + i % Units<kBits>::kCodes);
}

// The words of kLanes rows side by side.
struct SideBySide {
  Words words[kMostRowBytes / 4];
};

inline void transpose_rows(const u8* rows, i64 row_bytes, SideBySide& out) {
  for (i64 w = 0; 4 * w < row_bytes; w += 4)
    load_words(rows + 4 * w, row_bytes, smaller(4, row_bytes / 4 - w), out.words + w);
}

// dots[r] = sum_i queries[r][i] code_i unit_i over some words of kLanes rows.
template <int kBits, int kR>
inline void code_dots(const Words* words, i64 count, const float* queries, i64 q_stride,
                      F (&dots)[kR]) {
  constexpr int kCodes = 32 / kBits, kChains = kR == 1 ? 4 : 2;
  F acc[kChains][kR];
  for (int c = 0; c < kChains; ++c) {
    for (int r = 0; r < kR; ++r) acc[c][r] = zero();
  }
  for (i64 w = 0; w < count; ++w, queries += kCodes) {
    const Words in = words[w];
#pragma GCC unroll 8
    for (int place = 0; place < kCodes; ++place) {
      const F x = code_at<kBits>(in, place);
      for (int r = 0; r < kR; ++r) {
        F& sum = acc[place % kChains][r];
        sum = fma(x, set1(queries[r * q_stride + place]), sum);
      }
    }
  }
  for (int r = 0; r < kR; ++r) {
    dots[r] = acc[0][r] + acc[1][r];
    if constexpr (kChains == 4) dots[r] = dots[r] + (acc[2][r] + acc[3][r]);
  }
}

// each(codes, e, n) for up to kLanes rows of codes at a time; kLanes rows can be read at `codes`.
template <class Each>
inline void rows_in_lanes(const u8* codes, i64 row_bytes, i64 entries, const Each& each) {
  i64 e = 0;
  for (; e + kLanes <= entries; e += kLanes) each(codes + e * row_bytes, e, i64{kLanes});
  if (e == entries) return;
  u8 rest[kLanes * kMostRowBytes] = {};
  std::memcpy(rest, codes + e * row_bytes, static_cast<std::size_t>((entries - e) * row_bytes));
  each(rest, e, entries - e);
}

inline void store_scores(float* to, F scores, i64 n) {
  if (n == kLanes) {
    store(to, scores);
  } else {
    store_n(to, scores, n);
  }
}

// scores[r][e] = queries[r]'k_e; `folded` has room for kR queries.
template <int kR>
inline void channel_scores(const PageView& page, i64 d, const float* queries, i64 q_stride,
                           float* folded, Ahead& ahead, float* scores) {
  constexpr i64 kGroup = group_size(NumberCodec::channel4);
  const Encoded m = sections<NumberCodec::channel4>(page.k, page.encoded, d);
  const i64 end = page.first + page.entries;
  for (i64 begin = page.first; begin < end;) {
    const i64 group = begin / kGroup, next = smaller(end, (group + 1) * kGroup);
    F sums[kR], base[kR];
    for (int r = 0; r < kR; ++r) sums[r] = zero();
    for (i64 i = 0; i < d; i += kLanes) {
      const i64 n = smaller(kLanes, d - i);
      const F scale = load_f16_n(m.scale + group * d + i, n),
              minimum = load_f16_n(m.minimum + group * d + i, n);
      const F of_code = scale * inverse_units<4>(i);
      for (int r = 0; r < kR; ++r) {
        const F q = load(queries + r * q_stride + i);
        store(folded + r * q_stride + i, q * of_code);
        sums[r] = fma(q, minimum, sums[r]);
      }
    }
    for (int r = 0; r < kR; ++r) base[r] = set1(sum(sums[r]));
    float* to = scores + (begin - page.first);
    rows_in_lanes(m.codes + begin * m.row_bytes, m.row_bytes, next - begin,
                  [&](const u8* codes, i64 e, i64 n) {
                    SideBySide side;
                    transpose_rows(codes, m.row_bytes, side);
                    // As many bytes as there are codes, and a quarter for scales.
                    ahead.fetch_next(kLanes * m.row_bytes * 5 / 4);
                    F dots[kR];
                    code_dots<4>(side.words, m.row_bytes / 4, folded, q_stride, dots);
                    for (int r = 0; r < kR; ++r)
                      store_scores(to + r * kPageEntries + e, dots[r] + base[r], n);
                  });
    begin = next;
  }
}

// Number `place` of each of n <= kLanes tuples of `step` halves.
inline F load_f16_apart(const u16* x, i64 place, i64 step, i64 n) {
  if (step == 1) return load_f16_n(x, n);
#if defined(__AVX512F__)
  if (step == 2) {
    const F low = load_f16_n(x, smaller(kLanes, 2 * n));
    const F high = 2 * n > kLanes ? load_f16_n(x + kLanes, 2 * n - kLanes) : zero();
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i wanted = _mm512_add_epi32(even, _mm512_set1_epi32(static_cast<int>(place)));
    return _mm512_permutex2var_ps(low, wanted, high);
  }
#endif
  u16 side_by_side[kLanes] = {};
  for (i64 i = 0; i < n; ++i) side_by_side[i] = x[i * step + place];
  return load_f16(side_by_side);
}

template <int kR>
inline void group_scores(const PageView& page, i64 d, const float* queries, i64 q_stride,
                         float* folded, Ahead& ahead, float* scores) {
  constexpr i64 kGroup = group_size(NumberCodec::group8), kMostGroups = 4;
  const Encoded m = sections<NumberCodec::group8>(page.k, page.encoded, d);
  float query_sums[kR][kMostGroups];
  for (int r = 0; r < kR; ++r) {
    for (i64 g = 0; g < m.groups; ++g) {
      F total = zero();  // queries are padded with zeros
      for (i64 i = g * kGroup; i < smaller(d, (g + 1) * kGroup); i += kLanes) {
        const F q = load(queries + r * q_stride + i);
        store(folded + r * q_stride + i, q * inverse_units<8>(i));
        total = total + q;
      }
      query_sums[r][g] = sum(total);
    }
  }
  const u16* scale = m.scale + page.first * m.groups;
  const u16* minimum = m.minimum + page.first * m.groups;
  rows_in_lanes(m.codes + page.first * m.row_bytes, m.row_bytes, page.entries,
                [&](const u8* codes, i64 e, i64 n) {
                  SideBySide side;
                  transpose_rows(codes, m.row_bytes, side);
                  ahead.fetch_next(kLanes * m.row_bytes * 5 / 4);
                  F score[kR];
                  for (int r = 0; r < kR; ++r) score[r] = zero();
                  for (i64 g = 0; g < m.groups; ++g) {
                    F dots[kR];
                    code_dots<8>(side.words + g * kGroup / 4, smaller(kGroup, d - g * kGroup) / 4,
                                 folded + g * kGroup, q_stride, dots);
                    const F s = load_f16_apart(scale + e * m.groups, g, m.groups, n),
                            low = load_f16_apart(minimum + e * m.groups, g, m.groups, n);
                    for (int r = 0; r < kR; ++r)
                      score[r] = fma(dots[r], s, fma(low, set1(query_sums[r][g]), score[r]));
                  }
                  for (int r = 0; r < kR; ++r)
                    store_scores(scores + r * kPageEntries + e, score[r], n);
                });
}

// ---- values: lanes along d ----

// How kLanes codes become numbers of a group. They may come in another order, which `to_codes` gives to numbers and
// `to_numbers` takes back.
struct Bytes {
  static constexpr NumberCodec kCodec = NumberCodec::group8;
  struct Grid {
    F scale, minimum;
  };
  static Grid grid(float scale, float minimum) { return {set1(scale), set1(minimum)}; }
  static F get(const Grid& g, const u8* codes) { return fma(load_u8(codes), g.scale, g.minimum); }
  static F get_n(const Grid& g, const u8* codes, i64 n) {
    return fma(load_codes_n<8>(codes, 0, n), g.scale, g.minimum);
  }
  static F to_codes(F numbers) { return numbers; }
  static F to_numbers(F codes) { return codes; }
};

struct Nibbles {
  static constexpr NumberCodec kCodec = NumberCodec::group4;
#if defined(__AVX512F__)
  // Eight bytes repeated are in even lanes the first eight codes and in odd lanes the others; each lane shifts its own
  // down and looks the number up.
  using Grid = F;
  static Grid grid(float scale, float minimum) {
    return fma(_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), set1(scale),
               set1(minimum));
  }
  static F look_up(const Grid& g, i64 codes) {
    const __m512i shifts =
        _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi64(codes), shifts), g);
  }
  static F get(const Grid& g, const u8* codes) { return look_up(g, read<i64>(codes)); }
  static F get_n(const Grid& g, const u8* codes, i64) { return look_up(g, read<u32>(codes)); }
  static F to_codes(F numbers) {
    return _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15), numbers);
  }
  static F to_numbers(F codes) {
    return _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15), codes);
  }
#else
  using Grid = Bytes::Grid;
  static Grid grid(float scale, float minimum) { return {set1(scale), set1(minimum)}; }
#if defined(__AVX2__)
  static F get(const Grid& g, const u8* codes) {
    const __m256i down = _mm256_srlv_epi32(_mm256_set1_epi32(read<std::int32_t>(codes)),
                                           _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    const __m256i code = _mm256_and_si256(down, _mm256_set1_epi32(15));
    return fma(_mm256_cvtepi32_ps(code), g.scale, g.minimum);
  }
#else
  static F get(const Grid& g, const u8* codes) { return fma(load_u4(codes), g.scale, g.minimum); }
#endif
  static F get_n(const Grid& g, const u8* codes, i64) { return get(g, codes); }
  static F to_codes(F numbers) { return numbers; }
  static F to_numbers(F codes) { return codes; }
#endif
};

// The scales and minima of a page's values.
struct Grids {
  float scale[kPageEntries * 8], minimum[kPageEntries * 8];  // [entries,groups]
  i64 groups;
};

// sums[r][i..] = sums[r][i..] fade[r] + sum_e weights[r][e] x_e[i..] for kC vectors, the last one of n numbers.
template <class Codes, int kR, int kC>
inline void value_codes(const u8* codes, i64 row_bytes, const Grids& grids, i64 i, i64 n,
                        i64 entries, const float* weights, const float* fade, Ahead& ahead,
                        float* sums, i64 q_stride) {
  constexpr int kBits = code_bits(Codes::kCodec);
  constexpr int kGroup = static_cast<int>(group_size(Codes::kCodec));
  F acc[kR][kC];
  for (int r = 0; r < kR; ++r) {
    for (int c = 0; c < kC; ++c)
      acc[r][c] = Codes::to_codes(load(sums + r * q_stride + i + c * kLanes)) * set1(fade[r]);
  }
  codes += i * kBits / 8;
  const float* scale = grids.scale + i / kGroup;
  const float* minimum = grids.minimum + i / kGroup;
  for (i64 e = 0; e < entries; ++e) {
    if (e % 4 == 0) ahead.fetch_next(kC * kLanes * kBits / 8 * 5);  // of four entries, with scales
    typename Codes::Grid grid{};
    for (int c = 0; c < kC; ++c) {
      constexpr int kStep = kLanes * kBits / 8;
      if (c * kLanes % kGroup == 0)
        grid = Codes::grid(scale[c * kLanes / kGroup], minimum[c * kLanes / kGroup]);
      const F x = n == kLanes ? Codes::get(grid, codes + c * kStep)
                              : Codes::get_n(grid, codes + c * kStep, n);
      for (int r = 0; r < kR; ++r)
        acc[r][c] = fma(set1(weights[r * kPageEntries + e]), x, acc[r][c]);
    }
    codes += row_bytes;
    scale += grids.groups;
    minimum += grids.groups;
  }
  for (int r = 0; r < kR; ++r) {
    for (int c = 0; c < kC; ++c)
      store(sums + r * q_stride + i + c * kLanes, Codes::to_numbers(acc[r][c]));
  }
}

// Of channels i and on.
template <class Codes, int kR>
inline void add_coded_values(const PageView& page, i64 d, const float* weights, const float* fade,
                             Ahead& ahead, float* sums, i64 q_stride, i64 i = 0) {
  const Encoded m = sections<Codes::kCodec>(page.v, page.encoded, d);
  Grids grids;
  grids.groups = m.groups;
  const i64 from = page.first * m.groups, count = page.entries * m.groups;
  i64 g = 0;
  for (; g + kLanes <= count; g += kLanes) {
    store(grids.scale + g, load_f16(m.scale + from + g));
    store(grids.minimum + g, load_f16(m.minimum + from + g));
  }
  store_n(grids.scale + g, load_f16_n(m.scale + from + g, count - g), count - g);
  store_n(grids.minimum + g, load_f16_n(m.minimum + from + g, count - g), count - g);
  const u8* codes = m.codes + page.first * m.row_bytes;
  constexpr int kC = kLanes == 16 ? 4 : 2;
  for (; i + kC * kLanes <= d; i += kC * kLanes) {
    value_codes<Codes, kR, kC>(codes, m.row_bytes, grids, i, kLanes, page.entries, weights, fade,
                               ahead, sums, q_stride);
  }
  for (; i < d; i += kLanes) {
    value_codes<Codes, kR, 1>(codes, m.row_bytes, grids, i, smaller(kLanes, d - i), page.entries,
                              weights, fade, ahead, sums, q_stride);
  }
}

template <int kR>
inline void add_nibbles(const PageView& page, i64 d, const float* weights, const float* fade,
                        Ahead& ahead, float* sums, i64 q_stride) {
  add_coded_values<Nibbles, kR>(page, d, weights, fade, ahead, sums, q_stride);
}

}  // namespace mneme::kernels::MNEME_LEVEL
