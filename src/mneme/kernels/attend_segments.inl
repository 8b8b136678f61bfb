// Attention of the rows of a head over all rows of its segment, as two products of small matrices:
//
//   S = scale Q K'   W = exp(S - max S)   out = W V / sum W      a few rows of S at a time
//
// Keys are brought into columns, in steps of multiply_tile along d, and values into steps along the segment; zeros fill
// both up to whole vectors.
#pragma once

#include "mneme/kernels/attend.inl"
#include "mneme/kernels/tile.inl"

namespace mneme::kernels::MNEME_LEVEL {

inline i64 whole_vectors(i64 n) { return (n + kLanes - 1) / kLanes * kLanes; }

inline i64 segment_scratch(i64 T, i64 d) noexcept {
  const i64 columns = whole_vectors(T), width = whole_vectors(d);
  return d * columns + columns * width + kTileRows * (width + columns);
}

// n numbers, scaled, as steps; zeros fill up whole vectors.
template <class Steps>
inline void to_steps(const float* x, i64 n, float factor, u32* out) {
  for (i64 i = 0; i < n; i += kLanes)
    Steps::put(out, i, load_n(x + i, smaller(kLanes, n - i)) * set1(factor));
}

// A row of scores, in powers of two, to weights that are not normalized, as steps; their sum. `beyond` is added to the last
// vector: it hides what is not of the segment.
template <class Steps>
inline float weigh(float* scores, i64 columns, F beyond) {
  F high = load(scores + columns - kLanes) + beyond;
  store(scores + columns - kLanes, high);
  for (i64 e = 0; e + kLanes < columns; e += kLanes) high = max(high, load(scores + e));
  const F peak = set1(largest(high));
  F total = zero();
  for (i64 e = 0; e < columns; e += kLanes) {
    const F w = Steps::power(load(scores + e) - peak);
    total = total + w;
    Steps::put(reinterpret_cast<u32*>(scores), e, w);  // not beyond what has been read
  }
  return sum(total);
}

template <class Steps>
inline void attend_segment(const SegmentBlock& b, float* scratch) noexcept {
  const i64 d = b.d, T = b.T, columns = whole_vectors(T), width = whole_vectors(d);
  const i64 d_steps = (d + Steps::kNumbers - 1) / Steps::kNumbers,
            T_steps = (T + Steps::kNumbers - 1) / Steps::kNumbers;
  u32* keys = reinterpret_cast<u32*>(scratch);                            // [d_steps,columns]
  u32* values = keys + d_steps * columns;                                 // [T_steps,width]
  u32* queries = values + T_steps * width;                                // [kTileRows,width]
  float* scores = reinterpret_cast<float*>(queries + kTileRows * width);  // [kTileRows,columns]
  for (i64 e = 0; e < T; ++e) {
    to_steps<Steps>(b.k + e * b.k_stride, d, 1.f, queries);
    for (i64 i = 0; i < d_steps; ++i) keys[i * columns + e] = queries[i];
  }
  for (i64 i = 0; i < d_steps; ++i) {
    for (i64 e = T; e < columns; ++e) keys[i * columns + e] = 0;
  }
  for (i64 s = 0; s < T_steps; ++s) {
    const float* first = b.v + s * Steps::kNumbers * b.v_stride;
    const bool pair = Steps::kNumbers == 2 && 2 * s + 1 < T;
    u32* to = values + s * width;
    for (i64 i = 0; i < width; i += kLanes) {
      const i64 n = d - i < 0 ? 0 : smaller(kLanes, d - i);
      Steps::put_steps(to + i, load_n(first + i, n),
                       pair ? load_n(first + b.v_stride + i, n) : zero());
    }
  }
  float hidden[kLanes];
  for (i64 i = 0; i < kLanes; ++i) hidden[i] = columns - kLanes + i < T ? 0.f : -__builtin_inff();
  const F beyond = load(hidden);
  in_tiles<kTileRows>(b.t_end - b.t_begin, [&](auto constant, i64 first) {
    constexpr int kR = constant();
    const i64 t = b.t_begin + first;
    for (int r = 0; r < kR; ++r)
      to_steps<Steps>(b.q + (t + r) * b.q_stride, d, b.scale * kLog2E, queries + r * width);
    by_columns(columns, [&](auto vectors, i64 e) {
      F sums[kR][vectors()];
      multiply_tile<Steps>(queries, width, keys + e, columns, d_steps, sums);
      for (int r = 0; r < kR; ++r) {
        for (int v = 0; v < vectors(); ++v)
          store(scores + r * columns + e + v * kLanes, sums[r][v]);
      }
    });
    float inverse[kR];
    for (int r = 0; r < kR; ++r)
      inverse[r] = 1.f / weigh<Steps>(scores + r * columns, columns, beyond);
    by_columns(d, [&](auto vectors, i64 i) {
      F sums[kR][vectors()];
      multiply_tile<Steps>(reinterpret_cast<const u32*>(scores), columns, values + i, width,
                           T_steps, sums);
      for (int r = 0; r < kR; ++r) {
        float* to = b.out + (t + r) * b.out_stride + i;
        for (int v = 0; v < vectors(); ++v, to += kLanes) {
          const i64 n = smaller(kLanes, d - i - v * kLanes);
          const F value = sums[r][v] * set1(inverse[r]);
          n == kLanes ? store(to, value) : store_n(to, value, n);
        }
      }
    });
  });
}

}  // namespace mneme::kernels::MNEME_LEVEL
