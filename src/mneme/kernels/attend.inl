// Softmax attention of a block of queries over pages, one pass, with running maxima:
//
//   s_re = scale q_r' k_e + log_mass_e   where e is visible to r, else -inf
//   out_r = sum_e exp(s_re) v_e / sum_e exp(s_re),   lse_r = log sum_e exp(s_re)
//
// A block of many rows holds queries, scores and sums transposed, one row a lane: scores and values are then small
// matrix products whose other operand is one number for all lanes, and softmax needs no sum across lanes. A block of
// few rows would leave lanes idle; it runs with lanes along d, over encoded pages as attend_quantized.inl says.
#pragma once

#include "mneme/kernels/attend_4bit.inl"
#include "mneme/kernels/attend_quantized.inl"
#include "mneme/kernels/simd.inl"

namespace mneme::kernels::MNEME_LEVEL {

// Below every real score and above -inf, so that exp2(-inf - lowest) is 0 instead of NaN.
inline constexpr float kLowest = -1e30f;
inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2 = 0.693147181f;
inline constexpr float kHeadroom = 8.f;  // powers of two that a weight may exceed one by

#if defined(__AVX512F__)
inline constexpr int kMostVectors = 3, kTile = 8;  // 24 vectors of sums of 32
#elif defined(__AVX2__)
inline constexpr int kMostVectors = 3, kTile = 4;  // 12 of 16
#else
inline constexpr int kMostVectors = 2, kTile = 4;
#endif
inline constexpr i64 kMostRows = kMostVectors * kLanes;
inline constexpr i64 kSingleRows = kLanes == 4 ? 3 : kLanes == 8 ? 6 : 8;

inline PositionRange position_range(const i64* positions, i64 n) noexcept {
  PositionRange range{INT64_MAX, INT64_MIN};
  i64 i = 0;
#if defined(__AVX512F__)
  __m512i low = _mm512_set1_epi64(INT64_MAX), high = _mm512_set1_epi64(INT64_MIN);
  for (; i + 8 <= n; i += 8) {
    const __m512i p = _mm512_loadu_si512(positions + i);
    low = _mm512_min_epi64(low, p);
    high = _mm512_max_epi64(high, p);
  }
  range = {_mm512_reduce_min_epi64(low), _mm512_reduce_max_epi64(high)};
#endif
  for (; i < n; ++i) {
    range.lowest = positions[i] < range.lowest ? positions[i] : range.lowest;
    range.highest = positions[i] > range.highest ? positions[i] : range.highest;
  }
  return range;
}

// What of a page the queries at positions `from` to `to` see.
enum class Sight { nothing, something, everything };

inline Sight sight(const PositionRange& page, const PositionRange& queries, bool causal,
                   i64 window) {
  Sight s = Sight::everything;
  if (causal) {
    if (page.lowest > queries.highest) return Sight::nothing;
    if (page.highest > queries.lowest) s = Sight::something;
  }
  if (window > 0) {
    if (page.highest <= queries.lowest - window) return Sight::nothing;
    if (page.lowest <= queries.highest - window) s = Sight::something;
  }
  return s;
}

inline bool visible(i64 query, i64 key, bool causal, i64 window) {
  return (!causal || key <= query) && (window == 0 || query - key < window);
}

struct KvF32 {
  static constexpr i64 kBytes = 4;
  static F get(const void* p, i64 i) { return load(static_cast<const float*>(p) + i); }
  static F get_n(const void* p, i64 i, i64 n) {
    return load_n(static_cast<const float*>(p) + i, n);
  }
};
struct KvF16 {
  static constexpr i64 kBytes = 2;
  static F get(const void* p, i64 i) { return load_f16(static_cast<const u16*>(p) + i); }
  static F get_n(const void* p, i64 i, i64 n) {
    return load_f16_n(static_cast<const u16*>(p) + i, n);
  }
};
struct KvBf16 {
  static constexpr i64 kBytes = 2;
  static F get(const void* p, i64 i) { return load_bf16(static_cast<const u16*>(p) + i); }
  static F get_n(const void* p, i64 i, i64 n) {
    return load_bf16_n(static_cast<const u16*>(p) + i, n);
  }
};

// ---- many rows: one a lane ----

// scores[e][R] = sum_i keys[e][i] queries[i][R] for kE entries.
template <int kV, int kE>
inline void score_tile(const float* keys, const float* queries, i64 d, float* scores) {
  constexpr i64 R = kV * kLanes;
  F acc[kE][kV];
  for (int e = 0; e < kE; ++e) {
    for (int v = 0; v < kV; ++v) acc[e][v] = zero();
  }
  for (i64 i = 0; i < d; ++i) {
    F q[kV];
    for (int v = 0; v < kV; ++v) q[v] = load(queries + i * R + v * kLanes);
    for (int e = 0; e < kE; ++e) {
      const F k = set1(keys[e * d + i]);
      for (int v = 0; v < kV; ++v) acc[e][v] = fma(k, q[v], acc[e][v]);
    }
  }
  for (int e = 0; e < kE; ++e) {
    for (int v = 0; v < kV; ++v) store(scores + e * R + v * kLanes, acc[e][v]);
  }
}

// sums[i][R] = sums[i][R] fade[R] + sum_e values[e][i] weights[e][R] for kE columns i of `values`.
template <int kV, int kE>
inline void value_tile(const float* values, i64 d, i64 entries, const float* weights,
                       const F (&fade)[kV], float* sums) {
  constexpr i64 R = kV * kLanes;
  F acc[kE][kV];
  for (int i = 0; i < kE; ++i) {
    for (int v = 0; v < kV; ++v) acc[i][v] = load(sums + i * R + v * kLanes) * fade[v];
  }
  for (i64 e = 0; e < entries; ++e) {
    F w[kV];
    for (int v = 0; v < kV; ++v) w[v] = load(weights + e * R + v * kLanes);
    for (int i = 0; i < kE; ++i) {
      const F x = set1(values[e * d + i]);
      for (int v = 0; v < kV; ++v) acc[i][v] = fma(x, w[v], acc[i][v]);
    }
  }
  for (int i = 0; i < kE; ++i) {
    for (int v = 0; v < kV; ++v) store(sums + i * R + v * kLanes, acc[i][v]);
  }
}

// use(Kv), by the type of the numbers.
template <class Use>
inline void with_numbers(KvType type, const Use& use) {
  if (type == KvType::f32) use(KvF32{});
  if (type == KvType::f16) use(KvF16{});
  if (type == KvType::bf16) use(KvBf16{});
}

template <class Kv>
inline void widen(const void* in, i64 n, float* out) {
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, Kv::get(in, i));
  if (i < n) store_n(out + i, Kv::get_n(in, i, n - i), n - i);
}

inline const float* as_f32(const PageView& page, const void* in, NumberCodec codec, i64 d,
                           float* scratch) {
  const i64 n = page.entries * d;
  if (page.encoded != 0) {
    unpack_page(in, codec, page, d, scratch);
  } else if (page.type == KvType::f32) {
    return static_cast<const float*>(in);
  } else if (page.type == KvType::f16) {
    widen<KvF16>(in, n, scratch);
  } else {
    widen<KvBf16>(in, n, scratch);
  }
  return scratch;
}

// Keys of which only some channels are held, with zeros for the others.
inline const float* spread_keys(const PageView& page, i64 d, float* scratch) {
  const i64 width = page.k_width;
  float held[kMostHeadWidth];
  std::memset(scratch, 0, static_cast<std::size_t>(page.entries * d) * sizeof(float));
  with_numbers(page.type, [&](auto numbers) {
    using Kv = decltype(numbers);
    for (i64 e = 0; e < page.entries; ++e) {
      widen<Kv>(static_cast<const u8*>(page.k) + e * width * Kv::kBytes, width, held);
      for (i64 i = 0; i < width; ++i) scratch[e * d + page.channels[i]] = held[i];
    }
  });
  return scratch;
}

// The keys of a page [entries,d]: as they lie, or in `scratch`.
inline const float* keys_as_f32(const PageView& page, i64 d, float* scratch) {
  if (page.channels != nullptr) return spread_keys(page, d, scratch);
  return as_f32(page, page.k, page.k_codec, d, scratch);
}
inline const float* values_as_f32(const PageView& page, i64 d, float* scratch) {
  return as_f32(page, page.v, page.v_codec, d, scratch);
}

template <int kV>
inline void attend_lanes(const AttendBlock& b, const PositionRange& seen_from, float* scratch) {
  constexpr i64 R = kV * kLanes;
  const i64 d = b.d, T = b.t_end - b.t_begin, rows = T * b.heads;
  float* queries = scratch;                            // [d,R]
  float* sums = queries + d * kMostRows;               // [d,R]
  float* scores = sums + d * kMostRows;                // [entries,R]
  float* widened = scores + kPageEntries * kMostRows;  // [entries,d]
  i64 positions[R];
  const float factor = b.scale * kLog2E;
  for (i64 r = 0; r < R; ++r) {
    const i64 t = b.t_begin + (r < rows ? r / b.heads : 0), g = r < rows ? r % b.heads : 0;
    const float* q = b.q + g * b.q_head_stride + t * b.q_time_stride;
    for (i64 i = 0; i < d; ++i) queries[i * R + r] = q[i] * factor;
    positions[r] = b.q_positions[t];
  }
  std::memset(sums, 0, static_cast<std::size_t>(d * R) * sizeof(float));
  F peak[kV], total[kV];
  for (int v = 0; v < kV; ++v) peak[v] = set1(kLowest), total[v] = zero();

  for (i64 p = b.page_begin; p < b.page_end; ++p) {
    const PageView& page = b.pages[p];
    const i64 entries = page.entries;
    const Sight s =
        entries == 0 ? Sight::nothing : sight(b.ranges[p], seen_from, b.causal, b.window);
    if (s == Sight::nothing) continue;
    const float* keys = keys_as_f32(page, d, widened);
    i64 e = 0;
    for (; e + kTile <= entries; e += kTile)
      score_tile<kV, kTile>(keys + e * d, queries, d, scores + e * R);
    for (; e < entries; ++e) score_tile<kV, 1>(keys + e * d, queries, d, scores + e * R);
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
        // Bounds of the query positions that see the key, so that the inner loop is two comparisons.
        const i64 from = b.causal ? key : INT64_MIN,
                  to = b.window > 0 ? key + b.window - 1 : INT64_MAX;
        float* row = scores + e * R;
        for (i64 r = 0; r < R; ++r)
          row[r] = positions[r] >= from && positions[r] <= to ? row[r] : -__builtin_inff();
      }
    }
    F fade[kV];
    for (int v = 0; v < kV; ++v) {
      F high0 = peak[v], high1 = peak[v];
      for (e = 0; e + 2 <= entries; e += 2) {
        high0 = max(high0, load(scores + e * R + v * kLanes));
        high1 = max(high1, load(scores + (e + 1) * R + v * kLanes));
      }
      if (e < entries) high0 = max(high0, load(scores + e * R + v * kLanes));
      const F high = max(high0, high1);
      fade[v] = exp2(peak[v] - high);
      peak[v] = high;
      F sum0 = total[v] * fade[v], sum1 = zero();
      for (e = 0; e + 2 <= entries; e += 2) {
        float* at = scores + e * R + v * kLanes;
        const F w0 = exp2(load(at) - high), w1 = exp2(load(at + R) - high);
        store(at, w0);
        store(at + R, w1);
        sum0 = sum0 + w0;
        sum1 = sum1 + w1;
      }
      if (e < entries) {
        float* at = scores + e * R + v * kLanes;
        const F w0 = exp2(load(at) - high);
        store(at, w0);
        sum0 = sum0 + w0;
      }
      total[v] = sum0 + sum1;
    }
    const float* values = values_as_f32(page, d, widened);
    for (i64 i = 0; i < d; i += kTile)
      value_tile<kV, kTile>(values + i, d, entries, scores, fade, sums + i * R);
  }

  float peaks[R], totals[R];
  for (int v = 0; v < kV; ++v)
    store(peaks + v * kLanes, peak[v]), store(totals + v * kLanes, total[v]);
  for (i64 r = 0; r < rows; ++r) {
    const i64 t = r / b.heads, g = r % b.heads;
    float* out = b.out + g * b.out_head_stride + t * b.out_time_stride;
    const float inverse = totals[r] == 0.f ? 0.f : 1.f / totals[r];
    for (i64 i = 0; i < d; ++i) out[i] = sums[i * R + r] * inverse;
    if (b.lse != nullptr)
      b.lse[g * b.lse_head_stride + t] = kLn2 * peaks[r] + __builtin_logf(totals[r]);
  }
}

// ---- few rows: lanes along d ----

// scores[r][e] = sum_i queries[r][i] keys[e][i]; queries are padded with zeros to whole vectors.
template <class Kv, int kR, int kE>
[[gnu::always_inline]] inline void score_rows(const void* keys, i64 key, i64 d,
                                              const float* queries, i64 q_stride, float* scores) {
  F acc[kR][kE];
  for (int r = 0; r < kR; ++r) {
    for (int e = 0; e < kE; ++e) acc[r][e] = zero();
  }
  i64 i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    F q[kR];
    for (int r = 0; r < kR; ++r) q[r] = load(queries + r * q_stride + i);
    for (int e = 0; e < kE; ++e) {
      const F k = Kv::get(keys, (key + e) * d + i);
      for (int r = 0; r < kR; ++r) acc[r][e] = fma(k, q[r], acc[r][e]);
    }
  }
  if (i < d) {
    for (int e = 0; e < kE; ++e) {
      const F k = Kv::get_n(keys, (key + e) * d + i, d - i);
      for (int r = 0; r < kR; ++r) acc[r][e] = fma(k, load(queries + r * q_stride + i), acc[r][e]);
    }
  }
  for (int r = 0; r < kR; ++r) {
    float* to = scores + r * kPageEntries + key;
    if constexpr (kE == 4) {
      store_sums(to, acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
    } else {
      for (int e = 0; e < kE; ++e) to[e] = sum(acc[r][e]);
    }
  }
}

// sums[r][i..] = sums[r][i..] fade[r] + sum_e weights[r][e] values[e][i..] for kC vectors, the last one of n numbers.
template <class Kv, int kR, int kC>
inline void value_rows(const void* values, i64 i, i64 d, i64 entries, const float* weights,
                       const float* fade, Ahead& ahead, float* sums, i64 q_stride, i64 n) {
  F acc[kR][kC];
  for (int r = 0; r < kR; ++r) {
    for (int c = 0; c < kC; ++c)
      acc[r][c] = load(sums + r * q_stride + i + c * kLanes) * set1(fade[r]);
  }
  for (i64 e = 0; e < entries; ++e) {
    ahead.fetch_next(kC * kLanes * Kv::kBytes);
    F w[kR];
    for (int r = 0; r < kR; ++r) w[r] = set1(weights[r * kPageEntries + e]);
    for (int c = 0; c < kC; ++c) {
      const i64 at = e * d + i + c * kLanes;
      const F x = n == kLanes ? Kv::get(values, at) : Kv::get_n(values, at, n);
      for (int r = 0; r < kR; ++r) acc[r][c] = fma(w[r], x, acc[r][c]);
    }
  }
  for (int r = 0; r < kR; ++r) {
    for (int c = 0; c < kC; ++c) store(sums + r * q_stride + i + c * kLanes, acc[r][c]);
  }
}

struct RowState {
  float *queries, *sums;
  float *peaks, *totals;  // [rows], [rows,kLanes]
  i64 stride;             // of queries and sums: d rounded up to whole vectors
  float* folded;          // room for four queries
  float* narrow;          // queries without the channels that the keys of a page lack
  bool rounds;            // what meets codes of 4 bits may be rounded to integers
};

// scores[r][e] of all entries of a page.
template <int kR>
[[gnu::always_inline]] inline void page_scores(const PageView& page, i64 d, const float* queries,
                                               const RowState& state, Ahead& ahead, float* scores) {
  if (page.encoded != 0) {
    if (page.k_codec == NumberCodec::channel4) {
      const auto read = state.rounds ? rounded_channel_scores<kR> : channel_scores<kR>;
      read(page, d, queries, state.stride, state.folded, ahead, scores);
    } else {
      group_scores<kR>(page, d, queries, state.stride, state.folded, ahead, scores);
    }
    return;
  }
  with_numbers(page.type, [&](auto numbers) {
    using Kv = decltype(numbers);
    i64 e = 0;
    for (; e + 4 <= page.entries; e += 4) {
      ahead.fetch_next(4 * d * Kv::kBytes);
      score_rows<Kv, kR, 4>(page.k, e, d, queries, state.stride, scores);
    }
    for (; e < page.entries; ++e)
      score_rows<Kv, kR, 1>(page.k, e, d, queries, state.stride, scores);
  });
}

// sums[r] = sums[r] fade[r] + sum_e weights[r][e] v_e over all entries of a page.
template <int kR>
inline void add_page_values(const PageView& page, i64 d, const float* weights, const float* fade,
                            bool rounds, Ahead& ahead, float* sums, i64 stride) {
  if (page.encoded != 0) {
    if (page.v_codec == NumberCodec::group4) {
      const auto add = rounds ? add_rounded_values<kR> : add_nibbles<kR>;
      add(page, d, weights, fade, ahead, sums, stride);
    } else {
      add_coded_values<Bytes, kR>(page, d, weights, fade, ahead, sums, stride);
    }
    return;
  }
  with_numbers(page.type, [&](auto numbers) {
    using Kv = decltype(numbers);
    constexpr int kC = 4;
    i64 i = 0;
    for (; i + kC * kLanes <= d; i += kC * kLanes) {
      value_rows<Kv, kR, kC>(page.v, i, d, page.entries, weights, fade, ahead, sums, stride,
                             kLanes);
    }
    for (; i < d; i += kLanes) {
      value_rows<Kv, kR, 1>(page.v, i, d, page.entries, weights, fade, ahead, sums, stride,
                            smaller(kLanes, d - i));
    }
  });
}

// What is asked for beside other work: values while keys are read, beside these the keys of the next page.
struct PagesAhead {
  Ahead beside_keys, beside_values;
};

template <int kR>
inline void page_rows(const AttendBlock& b, const PageView& page, Sight s, i64 row,
                      const RowState& state, PagesAhead& ahead, float* scores) {
  const i64 entries = page.entries;
  const bool narrow = page.channels != nullptr;
  page_scores<kR>(page, narrow ? page.k_width : b.d,
                  (narrow ? state.narrow : state.queries) + row * state.stride, state,
                  ahead.beside_keys, scores);
  i64 e = 0;
  F high[kR];
  for (int r = 0; r < kR; ++r) {
    float* score = scores + r * kPageEntries;
    if (page.log_mass != nullptr) {
      for (e = 0; e < entries; ++e) score[e] += page.log_mass[e] * kLog2E;
    }
    if (s == Sight::something) {
      const i64 query = b.q_positions[b.t_begin + (row + r) / b.heads];
      for (e = 0; e < entries; ++e) {
        if (!visible(query, page.positions[e], b.causal, b.window)) score[e] = -__builtin_inff();
      }
    }
    for (e = entries; e % kLanes != 0; ++e) score[e] = -__builtin_inff();
    high[r] = load(score);
    for (i64 v = kLanes; v < e; v += kLanes) high[r] = max(high[r], load(score + v));
  }
  // Any number near the largest score will do to keep powers in range: it follows once scores rise far above it, so that
  // most pages need no sum or maximum across lanes.
  const i64 padded = e;
  float fade[kR];
  for (int r = 0; r < kR; ++r) {
    float& peak = state.peaks[row + r];
    fade[r] = 1.f;
    if (any_above(high[r], set1(peak + kHeadroom))) {
      float old[kLanes];
      const float risen = largest(high[r]);
      store(old, exp2(set1(peak - risen)));
      fade[r] = old[0];
      peak = risen;
    }
  }
  for (int r = 0; r < kR; ++r) {
    float* score = scores + r * kPageEntries;
    float* totals = state.totals + (row + r) * kLanes;
    const F peak = set1(state.peaks[row + r]);
    F total = load(totals) * set1(fade[r]);
    for (e = 0; e < padded; e += kLanes) {
      const F w = exp2(load(score + e) - peak);
      store(score + e, w);
      total = total + w;
    }
    store(totals, total);
  }
  add_page_values<kR>(page, b.d, scores, fade, state.rounds, ahead.beside_values,
                      state.sums + row * state.stride, state.stride);
}

inline Ahead bytes_of(const PageView& page, const void* numbers, NumberCodec codec, i64 d) {
  const i64 size = page.type == KvType::f32 ? 4 : 2;
  const i64 bytes =
      page.encoded != 0 ? encoded_matrix_bytes(codec, page.encoded, d) : page.entries * d * size;
  const auto* from = static_cast<const u8*>(numbers);
  return {from, from + bytes};
}

inline Ahead keys_of(const PageView& page, i64 d) {
  return bytes_of(page, page.k, page.k_codec, page.channels == nullptr ? d : page.k_width);
}
inline Ahead values_of(const PageView& page, i64 d) {
  return bytes_of(page, page.v, page.v_codec, d);
}

inline i64 row_stride(i64 d) { return (d + kLanes - 1) / kLanes * kLanes; }

inline void attend_rows(const AttendBlock& b, const PositionRange& seen_from, float* scratch) {
  const i64 d = b.d, rows = (b.t_end - b.t_begin) * b.heads;
  RowState state{};
  state.stride = row_stride(d);
  state.rounds = b.rounds;
  state.queries = scratch;
  state.sums = state.queries + kSingleRows * state.stride;
  state.folded = state.sums + kSingleRows * state.stride;
  state.narrow = state.folded + 4 * state.stride;
  float* scores = state.narrow + kSingleRows * state.stride;  // [4,kPageEntries]
  const u8* channels = nullptr;                               // those that `narrow` is of
  float peaks[kSingleRows], totals[kSingleRows * kLanes] = {};
  state.peaks = peaks;
  state.totals = totals;
  const float factor = b.scale * kLog2E;
  for (i64 r = 0; r < rows; ++r) {
    const float* q =
        b.q + (r % b.heads) * b.q_head_stride + (b.t_begin + r / b.heads) * b.q_time_stride;
    float* to = state.queries + r * state.stride;
    for (i64 i = 0; i < d; ++i) to[i] = q[i] * factor;
    for (i64 i = d; i < state.stride; ++i) to[i] = 0.f;
    peaks[r] = kLowest;
  }
  std::memset(state.sums, 0, static_cast<std::size_t>(rows * state.stride) * sizeof(float));
  for (i64 p = b.page_begin; p < b.page_end; ++p) {
    const PageView& page = b.pages[p];
    if (page.entries == 0) continue;
    const Sight s = sight(b.ranges[p], seen_from, b.causal, b.window);
    if (s == Sight::nothing) continue;
    if (page.channels != nullptr && page.channels != channels) {
      channels = page.channels;
      for (i64 r = 0; r < rows; ++r) {
        const float* from = state.queries + r * state.stride;
        float* to = state.narrow + r * state.stride;
        for (i64 i = 0; i < page.k_width; ++i) to[i] = from[channels[i]];
        for (i64 i = page.k_width; i < state.stride; ++i) to[i] = 0.f;
      }
    }
    // Few rows do little with each number, so memory is the limit: ask early for what this page and the next one need.
    PagesAhead ahead;
    const PageView* next = p + 1 < b.page_end ? &b.pages[p + 1] : b.then;
    ahead.beside_keys = values_of(page, d);
    if (next != nullptr) ahead.beside_values = keys_of(*next, d);
    i64 row = 0;
    for (; row + 4 <= rows; row += 4) page_rows<4>(b, page, s, row, state, ahead, scores);
    if (rows - row == 3) page_rows<3>(b, page, s, row, state, ahead, scores);
    if (rows - row == 2) page_rows<2>(b, page, s, row, state, ahead, scores);
    if (rows - row == 1) page_rows<1>(b, page, s, row, state, ahead, scores);
  }
  for (i64 r = 0; r < rows; ++r) {
    const i64 t = r / b.heads, g = r % b.heads;
    float* out = b.out + g * b.out_head_stride + t * b.out_time_stride;
    const float total = sum(load(totals + r * kLanes)), inverse = total == 0.f ? 0.f : 1.f / total;
    for (i64 i = 0; i < d; ++i) out[i] = state.sums[r * state.stride + i] * inverse;
    if (b.lse != nullptr)
      b.lse[g * b.lse_head_stride + t] = kLn2 * peaks[r] + __builtin_logf(total);
  }
}

inline i64 attend_scratch(i64 d) noexcept {
  const i64 lanes = 2 * d * kMostRows + kPageEntries * kMostRows + kPageEntries * d;
  const i64 rows = (3 * kSingleRows + 4) * row_stride(d) + 4 * kPageEntries;
  return lanes > rows ? lanes : rows;
}

inline void attend(const AttendBlock& b, float* scratch) noexcept {
  const i64 rows = (b.t_end - b.t_begin) * b.heads;
  const PositionRange seen_from = position_range(b.q_positions + b.t_begin, b.t_end - b.t_begin);
  if (rows <= kSingleRows) {
    attend_rows(b, seen_from, scratch);
  } else if (rows <= kLanes) {
    attend_lanes<1>(b, seen_from, scratch);
  } else if (rows <= 2 * kLanes || kMostVectors == 2) {
    attend_lanes<2>(b, seen_from, scratch);
  } else {
    attend_lanes<kMostVectors>(b, seen_from, scratch);
  }
}

// x[a], x[b] = x[a] cos - x[b] sin, x[b] cos + x[a] sin.
inline void rotate(const RotateRows& r) noexcept {
  for (i64 h = 0; h < r.heads; ++h) {
    float* __restrict x = r.x + h * r.head_stride;
    const float* __restrict cosine = r.cosine;
    const float* __restrict sine = r.sine;
    const float sign = r.sine_sign;
    if (r.adjacent) {
      for (i64 i = 0; i < r.pairs; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1], s = sign * sine[i];
        x[2 * i] = a * cosine[i] - b * s;
        x[2 * i + 1] = b * cosine[i] + a * s;
      }
    } else {
      float* __restrict y = x + r.pairs;
      for (i64 i = 0; i < r.pairs; ++i) {
        const float a = x[i], b = y[i], s = sign * sine[i];
        x[i] = a * cosine[i] - b * s;
        y[i] = b * cosine[i] + a * s;
      }
    }
  }
}

inline void exp_all(const float* x, float* y, i64 n) noexcept {
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, exp(load(x + i)));
  if (i < n) store_n(y + i, exp(load_n(x + i, n - i)), n - i);
}

}  // namespace mneme::kernels::MNEME_LEVEL
