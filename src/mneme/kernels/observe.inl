// Statistics of attention weights over some pages, from scores computed a second time:
//
//   a_re = exp(scale q_r' k_e + log_mass_e - lse_r) where e is visible to r, else 0
//   columns: sum_r g_r a_re,  max_r a_re    rows: sum_e a_re f_je,  -sum_e a_re ln a_re
//
// The highest of a column is found among the logarithms, before any is raised to a weight. One entry is a lane, so that
// columns add without sums across lanes and weights lie as they are asked for. Keys are transposed once a page; for few
// rows that would not pay, and their scores are computed as attend_rows does.
#pragma once

#include "mneme/kernels/attend.inl"

#include <utility>

namespace mneme::kernels::MNEME_LEVEL {

inline constexpr i64 kObserveRows = 24;  // in a block: their scores stay in the nearest cache

#if defined(__AVX512F__)
inline constexpr int kScoreRows = 6, kScoreVectors = 4;  // 24 vectors of sums of 32
#elif defined(__AVX2__)
inline constexpr int kScoreRows = 6, kScoreVectors = 2;  // 12 of 16
#else
inline constexpr int kScoreRows = 4, kScoreVectors = 2;  // 8 of 16: a product needs one of its own
#endif

// ---- lanes change places with vectors ----

template <int kStep, int... kLane>
inline void exchange(F& a, F& b, std::integer_sequence<int, kLane...>) {
  const F low =
      __builtin_shufflevector(a, b, ((kLane & kStep) == 0 ? kLane : kLanes + kLane - kStep)...);
  b = __builtin_shufflevector(a, b, ((kLane & kStep) == 0 ? kLane + kStep : kLanes + kLane)...);
  a = low;
}

// x[i][l] = x[l][i].
template <int kStep = 1>
inline void transpose(F (&x)[kLanes]) {
  if constexpr (kStep < kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      if ((i & kStep) == 0)
        exchange<kStep>(x[i], x[i + kStep], std::make_integer_sequence<int, kLanes>());
    }
    transpose<2 * kStep>(x);
  }
}

// keys [entries,d] to [d,kPageEntries]; entries up to a whole vector are zero.
inline void transpose_keys(const float* keys, i64 entries, i64 d, float* out) {
  for (i64 e = 0; e < entries; e += kLanes) {
    for (i64 i = 0; i < d; i += kLanes) {
      const i64 n = smaller(kLanes, d - i);
      F x[kLanes];
      if (n == kLanes && e + kLanes <= entries) {
        for (int l = 0; l < kLanes; ++l) x[l] = load(keys + (e + l) * d + i);
      } else {
        for (int l = 0; l < kLanes; ++l)
          x[l] = e + l < entries ? load_n(keys + (e + l) * d + i, n) : zero();
      }
      transpose(x);
      if (n == kLanes) {
        for (int l = 0; l < kLanes; ++l) store(out + (i + l) * kPageEntries + e, x[l]);
      } else {
        float rows[kLanes * kLanes];
        for (int l = 0; l < kLanes; ++l) store(rows + l * kLanes, x[l]);
        for (i64 l = 0; l < n; ++l)
          store(out + (i + l) * kPageEntries + e, load(rows + l * kLanes));
      }
    }
  }
}

// ---- scores [rows,kPageEntries] ----

// scores[r][e] = sum_i queries[r][i] keys[i][e] for kR rows and kV vectors of entries.
template <int kR, int kV>
inline void score_entries(const float* keys, const float* const* queries, i64 d, float* scores) {
  F acc[kR][kV];
  for (int r = 0; r < kR; ++r) {
    for (int v = 0; v < kV; ++v) acc[r][v] = zero();
  }
  for (i64 i = 0; i < d; ++i) {
    F k[kV];
    for (int v = 0; v < kV; ++v) k[v] = load(keys + i * kPageEntries + v * kLanes);
    for (int r = 0; r < kR; ++r) {
      const F q = set1(queries[r][i]);
      for (int v = 0; v < kV; ++v) acc[r][v] = fma(q, k[v], acc[r][v]);
    }
  }
  for (int r = 0; r < kR; ++r) {
    for (int v = 0; v < kV; ++v) store(scores + r * kPageEntries + v * kLanes, acc[r][v]);
  }
}

template <int kR, int kV = kScoreVectors>
inline void score_vectors(const float* keys, const float* const* queries, i64 d, i64 vectors,
                          float* scores) {
  for (; vectors >= kV; vectors -= kV, keys += kV * kLanes, scores += kV * kLanes)
    score_entries<kR, kV>(keys, queries, d, scores);
  if constexpr (kV > 1) score_vectors<kR, kV / 2>(keys, queries, d, vectors, scores);
}

template <int kR = kScoreRows>
inline void score_all(const float* keys, const float* const* queries, i64 rows, i64 d, i64 vectors,
                      float* scores) {
  for (; rows >= kR; rows -= kR, queries += kR, scores += kR * kPageEntries)
    score_vectors<kR>(keys, queries, d, vectors, scores);
  if constexpr (kR > 1) score_all<kR / 2>(keys, queries, rows, d, vectors, scores);
}

// The same from the page as it is stored, for queries that are padded with zeros to whole vectors.
template <int kR = 4>
inline void score_page(const PageView& page, i64 d, const float* queries, i64 rows,
                       const RowState& state, Ahead& ahead, float* scores) {
  for (; rows >= kR; rows -= kR, queries += kR * state.stride, scores += kR * kPageEntries)
    page_scores<kR>(page, d, queries, state, ahead, scores);
  if constexpr (kR > 1) score_page<kR - 1>(page, d, queries, rows, state, ahead, scores);
}

// ---- from scores to weights and their statistics ----

// x[e] = log2 of a weight, to the weight; returns sum_e x[e] 2^x[e].
inline float weights_of(float* x, i64 vectors) {
  F sum_of_logs = zero();
  for (i64 v = 0; v < vectors; ++v) {
    const F log = max(set1(-200.f), load(x + v * kLanes));  // keeps NaN; 0 log 0 = 0
    const F w = exp2(log);
    store(x + v * kLanes, w);
    sum_of_logs = fma(w, log, sum_of_logs);
  }
  return sum(sum_of_logs);
}

// sums[e] += sum_r g[r] weights[r][e].
inline void add_columns(const float* weights, const float* g, i64 rows, i64 vectors, float* sums) {
  for (i64 v = 0; v < vectors; ++v) {
    F total = load(sums + v * kLanes);
    for (i64 r = 0; r < rows; ++r)
      total = fma(set1(g[r]), load(weights + r * kPageEntries + v * kLanes), total);
    store(sums + v * kLanes, total);
  }
}

// sums[r][j] += sum_e weights[r][e] columns[j][e] for kR rows; weights are zero from `entries` to a whole vector.
template <int kR>
inline void add_row_sums(const float* weights, i64 rows, const float* columns, i64 column_stride,
                         i64 functionals, i64 entries, float* sums) {
  for (; rows >= kR; rows -= kR, weights += kR * kPageEntries, sums += kR * functionals) {
    for (i64 j = 0; j < functionals; ++j) {
      F acc[kR];
      for (int r = 0; r < kR; ++r) acc[r] = zero();
      for (i64 e = 0; e < entries; e += kLanes) {
        const float* f = columns + j * column_stride + e;
        const F column = e + kLanes <= entries ? load(f) : load_n(f, entries - e);
        for (int r = 0; r < kR; ++r)
          acc[r] = fma(column, load(weights + r * kPageEntries + e), acc[r]);
      }
      if constexpr (kR == 4) {
        float four[4];
        store_sums(four, acc[0], acc[1], acc[2], acc[3]);
        for (int r = 0; r < 4; ++r) sums[r * functionals + j] += four[r];
      } else {
        for (int r = 0; r < kR; ++r) sums[r * functionals + j] += sum(acc[r]);
      }
    }
  }
  if constexpr (kR > 1) {
    add_row_sums<kR / 4>(weights, rows, columns, column_stride, functionals, entries, sums);
  }
}

// ---- a block of rows ----

// Heads g.. at times t..: row r is head g + r / times at time t + r % times, and row `first` + r of all.
struct RowBlock {
  i64 g, heads, t, times, first;
  i64 rows() const { return heads * times; }
};

inline void score_block(const ObserveBlock& b, const RowBlock& block, const float* keys,
                        i64 vectors, float* scores) {
  const float* queries[kObserveRows];
  for (i64 r = 0; r < block.rows(); ++r) {
    queries[r] = b.q + (block.g + r / block.times) * b.q_head_stride +
                 (block.t + r % block.times) * b.q_time_stride;
  }
  score_all(keys, queries, block.rows(), b.d, vectors, scores);
}

// Scores of a page in sight to logarithms of weights, all in powers of two; those behind its last entry are -inf.
inline void take_logs(const ObserveBlock& b, const RowBlock& block, const PageView& page, Sight s,
                      const float* mass, float* scores) {
  const i64 entries = page.entries, vectors = (entries + kLanes - 1) / kLanes;
  const F factor = set1(b.scale * kLog2E);
  for (i64 r = 0; r < block.rows(); ++r) {
    float* x = scores + r * kPageEntries;
    const float lse = b.lse[block.first + r];
    const F norm = set1(lse == -__builtin_inff() ? -kLowest : lse * kLog2E);
    for (i64 e = 0; e < entries; e += kLanes)
      store(x + e, fma(load(x + e), factor, load(mass + e) - norm));
    for (i64 e = entries; e < vectors * kLanes; ++e) x[e] = -__builtin_inff();
    if (s == Sight::something) {
      const i64 query = b.q_positions[block.t + r % block.times];
      for (i64 e = 0; e < entries; ++e) {
        if (!visible(query, page.positions[e], b.causal, b.window)) x[e] = -__builtin_inff();
      }
    }
  }
}

inline void weigh_block(const ObserveBlock& b, const RowBlock& block, i64 vectors, float* scores) {
  for (i64 r = 0; r < block.rows(); ++r) {
    const float logs = weights_of(scores + r * kPageEntries, vectors);
    if (b.entropy != nullptr) b.entropy[block.first + r] -= kLn2 * logs;
  }
}

// most[e] = max(most[e], max_r logs[r][e]).
inline void raise_columns(const float* logs, i64 rows, i64 vectors, float* most) {
  for (i64 v = 0; v < vectors; ++v) {
    F highest = load(most + v * kLanes);
    for (i64 r = 0; r < rows; ++r)
      highest = max(load(logs + r * kPageEntries + v * kLanes), highest);
    store(most + v * kLanes, highest);
  }
}

inline void put_weights(const ObserveBlock& b, const RowBlock& block, i64 column, i64 entries,
                        const float* weights, i64 stride) {
  if (b.weights == nullptr) return;
  for (i64 r = 0; r < block.rows(); ++r) {
    std::memcpy(b.weights + (block.first + r) * b.entries + column, weights + r * stride,
                static_cast<std::size_t>(entries) * sizeof(float));
  }
}

inline i64 observe_scratch(i64 d) noexcept {
  return kPageEntries * (3 * kObserveRows + 2 * d) + (kSingleRows + 4) * row_stride(d);
}

inline void observe(const ObserveBlock& b, float* scratch) noexcept {
  const i64 d = b.d;
  float* scores = scratch;                             // [kObserveRows,kPageEntries]
  float* sums = scores + kObserveRows * kPageEntries;  // [heads,kPageEntries]
  float* most = sums + kObserveRows * kPageEntries;    // the same
  float* keys = most + kObserveRows * kPageEntries;    // [d,kPageEntries]
  float* widened = keys + kPageEntries * d;            // [kPageEntries,d]
  RowState state{};
  state.stride = row_stride(d);
  state.queries = widened + kPageEntries * d;                 // [kSingleRows,stride]
  state.folded = state.queries + kSingleRows * state.stride;  // [4,stride]
  const bool few = b.heads * b.T <= kSingleRows;
  const bool weighs = b.column_sums != nullptr || b.row_sums != nullptr || b.entropy != nullptr ||
                      b.weights != nullptr;
  for (i64 r = 0; few && r < b.heads * b.T; ++r) {
    const float* q = b.q + r / b.T * b.q_head_stride + r % b.T * b.q_time_stride;
    float* to = state.queries + r * state.stride;
    for (i64 i = 0; i < d; ++i) to[i] = q[i];
    for (i64 i = d; i < state.stride; ++i) to[i] = 0.f;
  }
  // A block of rows is one head at so many times, or several heads at all times.
  const i64 step = smaller(b.T, kObserveRows), group = kObserveRows / step;
  const float zeros[kPageEntries] = {};
  float ones[kObserveRows];
  for (float& one : ones) one = 1.f;

  for (i64 p = b.page_begin, column = b.first_entry; p < b.page_end; ++p) {
    const PageView& page = b.pages[p];
    const i64 entries = page.entries, vectors = (entries + kLanes - 1) / kLanes;
    if (entries == 0) continue;
    bool transposed = false;
    float mass[kPageEntries] = {};
    for (i64 e = 0; page.log_mass != nullptr && e < entries; ++e)
      mass[e] = page.log_mass[e] * kLog2E;
    for (i64 g = 0; g < b.heads; g += group) {
      const i64 heads = smaller(group, b.heads - g);
      std::memset(sums, 0, static_cast<std::size_t>(heads * kPageEntries) * sizeof(float));
      for (i64 i = 0; b.column_most != nullptr && i < heads * kPageEntries; ++i)
        most[i] = -__builtin_inff();
      for (i64 t = 0; t < b.T; t += step) {
        const RowBlock block{g, heads, t, smaller(step, b.T - t), g * b.T + t};
        const Sight s =
            sight(b.page_ranges[p], b.query_ranges[t / kObserveRows], b.causal, b.window);
        if (s == Sight::nothing) {
          put_weights(b, block, column, entries, zeros, 0);
          continue;
        }
        if (few && page.channels == nullptr) {
          Ahead ahead;
          if (p + 1 < b.page_count)
            ahead = bytes_of(b.pages[p + 1], b.pages[p + 1].k, b.pages[p + 1].k_codec, d);
          score_page(page, d, state.queries, block.rows(), state, ahead, scores);
        } else {
          if (!transposed) transpose_keys(keys_as_f32(page, d, widened), entries, d, keys);
          transposed = true;
          score_block(b, block, keys, vectors, scores);
        }
        take_logs(b, block, page, s, mass, scores);
        for (i64 h = 0; b.column_most != nullptr && h < heads; ++h) {
          raise_columns(scores + h * block.times * kPageEntries, block.times, vectors,
                        most + h * kPageEntries);
        }
        if (!weighs) continue;
        weigh_block(b, block, vectors, scores);
        put_weights(b, block, column, entries, scores, kPageEntries);
        if (b.column_sums != nullptr) {
          const float* row_weights = b.row_weights != nullptr ? b.row_weights + t : ones;
          for (i64 h = 0; h < heads; ++h) {
            add_columns(scores + h * block.times * kPageEntries, row_weights, block.times, vectors,
                        sums + h * kPageEntries);
          }
        }
        if (b.row_sums != nullptr) {
          add_row_sums<4>(scores, block.rows(), b.columns + column, b.entries, b.functionals,
                          entries, b.row_sums + block.first * b.functionals);
        }
      }
      for (i64 h = 0; b.column_sums != nullptr && h < heads; ++h) {
        float* to = b.column_sums + (g + h) * b.entries + column;
        for (i64 e = 0; e < entries; ++e) to[e] += sums[h * kPageEntries + e];
      }
      for (i64 h = 0; b.column_most != nullptr && h < heads; ++h) {
        float* logs = most + h * kPageEntries;
        (void)weights_of(logs, vectors);
        float* to = b.column_most + (g + h) * b.entries + column;
        for (i64 e = 0; e < entries; ++e) to[e] = logs[e] > to[e] ? logs[e] : to[e];
      }
    }
    column += entries;
  }
}

}  // namespace mneme::kernels::MNEME_LEVEL
