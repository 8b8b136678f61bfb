// Attention of many rows with products of bf16 pairs, for CPUs that multiply them in one instruction:
//
//   s_re = sum_i (q_2i k_2i + q_2i+1 k_2i+1),   out_r = sum_e (w_re v_e + w_re+1 v_e+1) / sum_e w_re
//
// Queries, keys, weights and values are rounded to bf16, sums are in single precision. As in attend.inl one row is a
// lane. A page is converted once for several groups of rows: keys as they lie, since their pairs run along d, values
// with each two entries side by side.
#pragma once

#include "mneme/kernels/attend.inl"

namespace mneme::kernels::MNEME_LEVEL {

#if defined(__AVX512BF16__)

using Pairs = __m512i;  // 16 pairs of bf16

inline constexpr i64 kGroups = 4;  // of kMostRows rows, which share a converted page
inline constexpr i64 kPairTile = 8;

// Weights (even, odd) rounded and put side by side; these are at least 0.
inline Pairs paired(F even, F odd) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
  const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
  return _mm512_mask_blend_epi16(0xaaaaaaaa, low, high);
}
inline Pairs load_pairs(const u32* p) { return _mm512_loadu_si512(p); }
inline F multiply_add(Pairs a, Pairs b, F sum) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

inline void narrow_keys(const float* keys, i64 n, u16* out) {
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) store_bf16(out + i, load(keys + i));
  if (i < n) store_bf16_n(out + i, load_n(keys + i, n - i), n - i);
}

// [entries,d] to [entries / 2 rounded up, d] pairs; a missing last entry is zero.
inline void pair_values(const float* values, i64 entries, i64 d, u32* out) {
  for (i64 e = 0; e < entries; e += 2) {
    const float* even = values + e * d;
    for (i64 i = 0; i < d; i += kLanes) {
      const i64 n = smaller(kLanes, d - i);
      const F odd = e + 1 < entries ? load_n(even + d + i, n) : zero();
      // A value may be no number, and then is to stay none.
      const __m512i low = _mm512_cvtepu16_epi32(narrow_bf16(load_n(even + i, n))),
                    high = _mm512_cvtepu16_epi32(narrow_bf16(odd));
      _mm512_mask_storeu_epi32(out + e / 2 * d + i, first(n),
                               _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

// scores[e][R] = sum of the products of pairs of keys[e] and queries[.][R] for kE entries.
template <int kV, int kE>
inline void score_pairs(const u32* keys, const u32* queries, i64 pairs, float* scores) {
  constexpr i64 R = kV * kLanes;
  F acc[kE][kV];
  for (int e = 0; e < kE; ++e) {
    for (int v = 0; v < kV; ++v) acc[e][v] = zero();
  }
  for (i64 i = 0; i < pairs; ++i) {
    Pairs q[kV];
    for (int v = 0; v < kV; ++v) q[v] = load_pairs(queries + i * R + v * kLanes);
    for (int e = 0; e < kE; ++e) {
      const Pairs k = _mm512_set1_epi32(static_cast<int>(keys[e * pairs + i]));
      for (int v = 0; v < kV; ++v) acc[e][v] = multiply_add(k, q[v], acc[e][v]);
    }
  }
  for (int e = 0; e < kE; ++e) {
    for (int v = 0; v < kV; ++v) store(scores + e * R + v * kLanes, acc[e][v]);
  }
}

// sums[i][R] = sums[i][R] fade[R] + sum_e values[e][i] weights[e][R] for kPairTile columns i, e counting pairs.
template <int kV>
inline void sum_pairs(const u32* values, i64 d, i64 pairs, const u32* weights, const F (&fade)[kV],
                      float* sums) {
  constexpr i64 R = kV * kLanes;
  F acc[kPairTile][kV];
  for (int i = 0; i < kPairTile; ++i) {
    for (int v = 0; v < kV; ++v) acc[i][v] = load(sums + i * R + v * kLanes) * fade[v];
  }
  for (i64 e = 0; e < pairs; ++e) {
    Pairs w[kV];
    for (int v = 0; v < kV; ++v) w[v] = load_pairs(weights + e * R + v * kLanes);
    for (int i = 0; i < kPairTile; ++i) {
      const Pairs x = _mm512_set1_epi32(static_cast<int>(values[e * d + i]));
      for (int v = 0; v < kV; ++v) acc[i][v] = multiply_add(x, w[v], acc[i][v]);
    }
  }
  for (int i = 0; i < kPairTile; ++i) {
    for (int v = 0; v < kV; ++v) store(sums + i * R + v * kLanes, acc[i][v]);
  }
}

// Some times of a block, with all its heads: at most kMostRows rows.
struct RowGroup {
  i64 t_begin, rows;
  PositionRange seen_from;
  u32* queries;  // [d / 2,R] pairs
  float* sums;   // [d,R]
  float *peaks, *totals;
  i64* positions;
};

template <int kV>
inline void start_group(const AttendBlock& b, const RowGroup& group) {
  constexpr i64 R = kV * kLanes;
  const float factor = b.scale * kLog2E;
  u16 narrow[256];  // d is at most that
  for (i64 r = 0; r < R; ++r) {
    const i64 at = r < group.rows ? r : 0, t = group.t_begin + at / b.heads;
    const float* q = b.q + at % b.heads * b.q_head_stride + t * b.q_time_stride;
    i64 i = 0;
    for (; i + kLanes <= b.d; i += kLanes) store_bf16(narrow + i, load(q + i) * set1(factor));
    if (i < b.d) store_bf16_n(narrow + i, load_n(q + i, b.d - i) * set1(factor), b.d - i);
    for (i = 0; i < b.d / 2; ++i) group.queries[i * R + r] = read<u32>(narrow + 2 * i);
    group.positions[r] = b.q_positions[t];
    group.peaks[r] = kLowest, group.totals[r] = 0.f;
  }
  std::memset(group.sums, 0, static_cast<std::size_t>(b.d * R) * sizeof(float));
}

// One converted page: `keys` [entries,d] bf16, `values` [entries / 2 rounded up, d] pairs.
template <int kV>
inline void group_page(const AttendBlock& b, const RowGroup& group, const PageView& page, Sight s,
                       const u32* keys, const u32* values, float* scores, u32* weights) {
  constexpr i64 R = kV * kLanes;
  const i64 entries = page.entries, pairs = b.d / 2;
  i64 e = 0;
  for (; e + kPairTile <= entries; e += kPairTile)
    score_pairs<kV, kPairTile>(keys + e * pairs, group.queries, pairs, scores + e * R);
  for (; e < entries; ++e)
    score_pairs<kV, 1>(keys + e * pairs, group.queries, pairs, scores + e * R);
  if (page.log_mass != nullptr) {
    for (e = 0; e < entries; ++e) {
      const F mass = set1(page.log_mass[e] * kLog2E);
      for (int v = 0; v < kV; ++v)
        store(scores + e * R + v * kLanes, load(scores + e * R + v * kLanes) + mass);
    }
  }
  if (s == Sight::something) {
    for (e = 0; e < entries; ++e) {
      const i64 key = page.positions[e];
      const i64 from = b.causal ? key : INT64_MIN,
                to = b.window > 0 ? key + b.window - 1 : INT64_MAX;
      float* row = scores + e * R;
      for (i64 r = 0; r < R; ++r) {
        if (group.positions[r] < from || group.positions[r] > to) row[r] = -__builtin_inff();
      }
    }
  }
  for (e = entries; e % 2 != 0; ++e) {
    for (int v = 0; v < kV; ++v) store(scores + e * R + v * kLanes, set1(-__builtin_inff()));
  }
  const i64 padded = e;
  F fade[kV];
  for (int v = 0; v < kV; ++v) {
    const F peak = load(group.peaks + v * kLanes);
    F high0 = peak, high1 = peak;
    for (e = 0; e < padded; e += 2) {
      high0 = max(high0, load(scores + e * R + v * kLanes));
      high1 = max(high1, load(scores + (e + 1) * R + v * kLanes));
    }
    const F high = max(high0, high1);
    fade[v] = exp2(peak - high);
    F sum0 = load(group.totals + v * kLanes) * fade[v], sum1 = zero();
    for (e = 0; e < padded; e += 2) {
      const float* at = scores + e * R + v * kLanes;
      const F w0 = exp2(load(at) - high), w1 = exp2(load(at + R) - high);
      _mm512_storeu_si512(weights + e / 2 * R + v * kLanes, paired(w0, w1));
      sum0 = sum0 + w0;
      sum1 = sum1 + w1;
    }
    store(group.peaks + v * kLanes, high);
    store(group.totals + v * kLanes, sum0 + sum1);
  }
  for (i64 i = 0; i < b.d; i += kPairTile)
    sum_pairs<kV>(values + i, b.d, padded / 2, weights, fade, group.sums + i * R);
}

template <int kV>
inline void finish_group(const AttendBlock& b, const RowGroup& group) {
  constexpr i64 R = kV * kLanes;
  for (i64 r = 0; r < group.rows; ++r) {
    const i64 t = group.t_begin - b.t_begin + r / b.heads, g = r % b.heads;
    float* out = b.out + g * b.out_head_stride + t * b.out_time_stride;
    const float inverse = group.totals[r] == 0.f ? 0.f : 1.f / group.totals[r];
    for (i64 i = 0; i < b.d; ++i) out[i] = group.sums[i * R + r] * inverse;
    if (b.lse != nullptr)
      b.lse[g * b.lse_head_stride + t] = kLn2 * group.peaks[r] + __builtin_logf(group.totals[r]);
  }
}

// `run` with the number of vectors that hold the rows as a constant.
template <class Run>
inline void with_vectors(i64 rows, const Run& run) {
  if (rows <= kLanes) {
    run(std::integral_constant<int, 1>{});
  } else if (rows <= 2 * kLanes) {
    run(std::integral_constant<int, 2>{});
  } else {
    run(std::integral_constant<int, kMostVectors>{});
  }
}

inline constexpr i64 kBf16Rows = kGroups * kMostRows;

inline i64 attend_bf16_scratch(i64 d) noexcept {
  const i64 page = kPageEntries * d, rows = kMostRows;
  const i64 shared = page + page / 2 + page / 2 + kPageEntries * rows + kPageEntries / 2 * rows;
  const i64 group = d / 2 * rows + d * rows + 2 * rows + 2 * rows;
  const i64 floats = shared + kGroups * group, exact = attend_scratch(d);
  return floats > exact ? floats : exact;
}

inline void attend_bf16(const AttendBlock& b, float* scratch) noexcept {
  if ((b.t_end - b.t_begin) * b.heads <= kSingleRows) {
    attend(b, scratch);
    return;
  }
  const i64 d = b.d;
  const auto take = [&scratch](i64 floats) {
    float* memory = scratch;
    scratch += floats;
    return memory;
  };
  float* widened = take(kPageEntries * d);
  u32* keys = reinterpret_cast<u32*>(take(kPageEntries * d / 2));
  u32* values = reinterpret_cast<u32*>(take(kPageEntries * d / 2));
  float* scores = take(kPageEntries * kMostRows);
  u32* weights = reinterpret_cast<u32*>(take(kPageEntries / 2 * kMostRows));
  RowGroup groups[kGroups];
  i64 count = 0;
  const i64 step = kMostRows / b.heads;
  for (i64 t = b.t_begin; t < b.t_end; t += step, ++count) {
    const i64 end = smaller(t + step, b.t_end);
    RowGroup& group = groups[count];
    group.t_begin = t;
    group.rows = (end - t) * b.heads;
    group.seen_from = position_range(b.q_positions + t, end - t);
    group.positions = reinterpret_cast<i64*>(take(2 * kMostRows));
    group.queries = reinterpret_cast<u32*>(take(d / 2 * kMostRows));
    group.sums = take(d * kMostRows);
    group.peaks = take(kMostRows);
    group.totals = take(kMostRows);
    with_vectors(group.rows, [&](auto vectors) { start_group<vectors()>(b, group); });
  }
  for (i64 p = b.page_begin; p < b.page_end; ++p) {
    const PageView& page = b.pages[p];
    if (page.entries == 0) continue;
    bool converted = false;
    for (i64 i = 0; i < count; ++i) {
      const RowGroup& group = groups[i];
      const Sight s = sight(b.ranges[p], group.seen_from, b.causal, b.window);
      if (s == Sight::nothing) continue;
      if (!converted) {
        narrow_keys(keys_as_f32(page, d, widened), page.entries * d, reinterpret_cast<u16*>(keys));
        pair_values(values_as_f32(page, d, widened), page.entries, d, values);
        converted = true;
      }
      with_vectors(group.rows, [&](auto vectors) {
        group_page<vectors()>(b, group, page, s, keys, values, scores, weights);
      });
    }
  }
  for (i64 i = 0; i < count; ++i) {
    with_vectors(groups[i].rows, [&](auto vectors) { finish_group<vectors()>(b, groups[i]); });
  }
}

#endif

}  // namespace mneme::kernels::MNEME_LEVEL
