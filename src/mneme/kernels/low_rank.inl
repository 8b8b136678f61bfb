// Low-rank updates (see low_rank.h). Rows of B lie sixteen together, column after column, so that lanes are rows of B and no
// sum across lanes is needed. A few rows of x meet A as they meet any plain matrix; many meet four rows of A at a time,
// widened once.
#pragma once

#include "mneme/kernels/quantized.inl"
#include "mneme/kernels/simd.inl"

namespace mneme::kernels::MNEME_LEVEL {

inline constexpr i64 kBlockRows = 16;
static_assert(kBlockRows % kLanes == 0);

// Vector v of a block of B against kM rows of t.
template <class Format, int kM>
inline void add_block(const u8* b, const LowRankAdd& u, i64 m, i64 n) {
  const i64 here = smaller(kLanes, u.N - n);
  F acc[kM];
  for (int j = 0; j < kM; ++j) acc[j] = zero();
  const float* t = u.t + m * u.t_stride;
  for (i64 i = 0; i < u.rank; ++i) {
    const F column = Format::get(b, i * kBlockRows);
    for (int j = 0; j < kM; ++j) acc[j] = fma(column, set1(t[j * u.t_stride + i]), acc[j]);
  }
  const F scale = set1(u.scale);
  for (int j = 0; j < kM; ++j) {
    float* y = u.y + (m + j) * u.y_stride + n;
    if (here == kLanes) {
      store(y, fma(acc[j], scale, load(y)));
    } else {
      store_n(y, fma(acc[j], scale, load_n(y, here)), here);
    }
  }
}

template <class Format>
inline void add_low_rank(const LowRankAdd& u, i64 n_begin, i64 n_end) noexcept {
  const u8* blocks = static_cast<const u8*>(u.b);
  const i64 block_bytes = u.rank * kBlockRows * Format::kBytes;
  for (i64 n = n_begin; n < n_end; n += kLanes) {
    const u8* b = blocks + n / kBlockRows * block_bytes + n % kBlockRows * Format::kBytes;
    i64 m = 0;
    for (; m + 4 <= u.M; m += 4) add_block<Format, 4>(b, u, m, n);
    if (u.M - m == 3) add_block<Format, 3>(b, u, m, n);
    if (u.M - m == 2) add_block<Format, 2>(b, u, m, n);
    if (u.M - m == 1) add_block<Format, 1>(b, u, m, n);
  }
}

inline constexpr i64 kRowsOfA = 4;
inline constexpr int kRowsOfX = kLanes == 16 ? 4 : 2;  // sums fill half of the registers
inline constexpr i64 kPanel =
    1024;  // numbers of a row of A at a time: 16 KiB stay in the first cache

// kM rows of x against four widened rows of A, along n numbers; to `sums`, four a row of x.
template <int kM>
inline void panel_sums(const float (&a)[kRowsOfA][kPanel], const float* x, i64 x_stride, i64 n,
                       float* sums) {
  F acc[kRowsOfA][kM];
  for (i64 r = 0; r < kRowsOfA; ++r) {
    for (int j = 0; j < kM; ++j) acc[r][j] = zero();
  }
  i64 k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    for (int j = 0; j < kM; ++j) {
      const F v = load(x + j * x_stride + k);
      for (i64 r = 0; r < kRowsOfA; ++r) acc[r][j] = fma(load(a[r] + k), v, acc[r][j]);
    }
  }
  if (k < n) {
    for (int j = 0; j < kM; ++j) {
      const F v = load_n(x + j * x_stride + k, n - k);
      for (i64 r = 0; r < kRowsOfA; ++r) acc[r][j] = fma(load_n(a[r] + k, n - k), v, acc[r][j]);
    }
  }
  for (int j = 0; j < kM; ++j)
    store_sums(sums + j * kRowsOfA, acc[0][j], acc[1][j], acc[2][j], acc[3][j]);
}

template <int kM>
inline void add_panel(const float (&a)[kRowsOfA][kPanel], const float* x, i64 x_stride, i64 n,
                      bool first_panel, i64 rows, float* t, i64 t_stride) {
  float sums[kM * kRowsOfA];
  panel_sums<kM>(a, x, x_stride, n, sums);
  for (int j = 0; j < kM; ++j) {
    for (i64 r = 0; r < rows; ++r) {
      float& to = t[j * t_stride + r];
      to = first_panel ? sums[j * kRowsOfA + r] : to + sums[j * kRowsOfA + r];
    }
  }
}

// t[m,i] = sum_k x[m,k] A[i,k]
template <class Format>
inline void low_rank_inputs(const void* packed, i64 rank, const float* x, i64 M, i64 K, float* t,
                            i64 t_stride) noexcept {
  alignas(64) float a[kRowsOfA][kPanel];
  const u8* rows_of_a = static_cast<const u8*>(packed);
  for (i64 i = 0; i < rank; i += kRowsOfA) {
    const i64 rows = smaller(kRowsOfA, rank - i);
    // The loop also runs where K is 0, to write the zeros.
    for (i64 begin = 0; begin == 0 || begin < K; begin += kPanel) {
      const i64 n = smaller(kPanel, K - begin);
      for (i64 r = 0; r < kRowsOfA; ++r) {
        // Rows past the last repeat it; their sums are left out.
        const u8* row = rows_of_a + ((i + smaller(r, rows - 1)) * K + begin) * Format::kBytes;
        unpack_plain<Format, ToF32>(row, n, a[r]);
      }
      const float* from = x + begin;
      i64 m = 0;
      for (; m + kRowsOfX <= M; m += kRowsOfX) {
        add_panel<kRowsOfX>(a, from + m * K, K, n, begin == 0, rows, t + m * t_stride + i,
                            t_stride);
      }
      for (; m < M; ++m)
        add_panel<1>(a, from + m * K, K, n, begin == 0, rows, t + m * t_stride + i, t_stride);
    }
  }
}

inline constexpr i64 kRowsOfW = kLanes == 16 ? 16 : 8;  // as many sums as registers hold
inline constexpr i64 kColumnsOfB = 16;

// kM rows of w [16,K], the first of them at row `first` of a block of B, along all of K.
template <class Format, int kM>
inline void merge_rows(const u8* a, const float (&b)[kColumnsOfB][kBlockRows], i64 columns, i64 K,
                       i64 first, float* w) {
  const auto piece = [&](i64 k, const auto& get, const auto& read_w, const auto& write_w) {
    F acc[kM];
    for (int j = 0; j < kM; ++j) acc[j] = read_w(w + j * K + k);
    for (i64 i = 0; i < columns; ++i) {
      const F v = get(i * K + k);
      for (int j = 0; j < kM; ++j) acc[j] = fma(set1(b[i][first + j]), v, acc[j]);
    }
    for (int j = 0; j < kM; ++j) write_w(w + j * K + k, acc[j]);
  };
  i64 k = 0;
  for (; k + kLanes <= K; k += kLanes) {
    piece(
        k, [&](i64 at) { return Format::get(a, at); }, [](const float* p) { return load(p); },
        [](float* p, F v) { store(p, v); });
  }
  if (const i64 n = K - k; n > 0) {
    piece(
        k, [&](i64 at) { return Format::get_n(a, at, n); },
        [&](const float* p) { return load_n(p, n); }, [&](float* p, F v) { store_n(p, v, n); });
  }
}

// w [rows,K] += s B A for the rows of one block of B, at most 16.
template <class Format>
inline void low_rank_merge(const void* a, const void* block, i64 rank, float scale, i64 rows, i64 K,
                           float* w) noexcept {
  alignas(64) float b[kColumnsOfB][kBlockRows];
  const F by = set1(scale);
  for (i64 i = 0; i < rank; i += kColumnsOfB) {
    const i64 columns = smaller(kColumnsOfB, rank - i);
    for (i64 c = 0; c < columns; ++c) {
      for (i64 n = 0; n < kBlockRows; n += kLanes)
        store(b[c] + n, by * Format::get(static_cast<const u8*>(block), (i + c) * kBlockRows + n));
    }
    const u8* rows_of_a = static_cast<const u8*>(a) + i * K * Format::kBytes;
    i64 n = 0;
    for (; n + kRowsOfW <= rows; n += kRowsOfW)
      merge_rows<Format, kRowsOfW>(rows_of_a, b, columns, K, n, w + n * K);
    for (; n < rows; ++n) merge_rows<Format, 1>(rows_of_a, b, columns, K, n, w + n * K);
  }
}

// Rows of s B, as columns beside rows of other numbers.
template <class Format, class To>
inline void low_rank_columns(const void* packed, i64 rank, float scale, i64 n_begin, i64 n_end,
                             typename To::Number* out, i64 stride) noexcept {
  const F by = set1(scale);
  alignas(64) typename To::Number b[kColumnsOfB][kBlockRows];
  for (i64 n = n_begin; n < n_end; n += kBlockRows) {
    const i64 rows = smaller(kBlockRows, n_end - n);
    for (i64 i = 0; i < rank; i += kColumnsOfB) {
      const i64 columns = smaller(kColumnsOfB, rank - i);
      const u8* block =
          static_cast<const u8*>(packed) + (n * rank + i * kBlockRows) * Format::kBytes;
      for (i64 at = 0; at < columns * kBlockRows; at += kLanes)
        To::put(&b[0][0] + at, Format::get(block, at) * by);
      for (i64 j = 0; j < rows; ++j) {
        auto* row = out + (n - n_begin + j) * stride + i;
        for (i64 c = 0; c < columns; ++c) row[c] = b[c][j];
      }
    }
  }
}

}  // namespace mneme::kernels::MNEME_LEVEL
