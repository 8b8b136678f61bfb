#include "mneme/kernels/low_rank.h"

#include "mneme/core/error.h"
#include "mneme/kernels/kernel_table.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/timing.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

namespace mneme::kernels {
namespace {

// Multiplications below which another thread costs more than it brings.
constexpr std::int64_t kProductsPerThread = 64 * 1024;
// Rows of x that meet A together: A is widened once for them, and they stay in the second cache.
constexpr std::int64_t kRowsOfInput = 64;
constexpr std::int64_t kNumbersPerPiece = 32 * 1024;

std::size_t index(WeightType type) { return static_cast<std::size_t>(type); }

void check_plain(WeightType type) {
  if (is_quantized(type)) {
    throw Error(Errc::invalid, "a low-rank update is of plain numbers, not " +
                                   std::string(name(type)) + ": give f32, f16 or bf16");
  }
}

// Rows of x against every A; t [M,R] in single precision.
void inputs(std::span<const LowRankPart> parts, const float* x, std::int64_t M, std::int64_t K,
            float* t, std::int64_t t_stride) {
  for (const LowRankPart& part : parts) {
    table().low_rank_inputs[index(part.type)](part.a, part.rank, x, M, K, t, t_stride);
    t += part.rank;
  }
}

void check_input(std::int64_t M, std::int64_t K) {
  if (M < 0 || K < 0) {
    throw Error(Errc::invalid,
                "activations of shape [" + std::to_string(M) + "," + std::to_string(K) + "]");
  }
}

void check_width(std::int64_t wanted, std::int64_t columns, std::int64_t stride, std::int64_t M) {
  if (columns < wanted || (stride < columns && M > 1)) {
    throw Error(Errc::invalid, std::to_string(wanted) + " columns of low-rank updates into " +
                                   std::to_string(columns) + " columns of rows " +
                                   std::to_string(stride) + " apart");
  }
}

void convert(const float* in, std::int64_t n, float* out) { std::copy_n(in, n, out); }
void convert(const float* in, std::int64_t n, std::uint16_t* out) {
  table().to_bf16[index(WeightType::f32)](reinterpret_cast<const std::uint8_t*>(in), n, out);
}

// Pieces of rows go through `rows_of`(first row, rows, t [rows,rank]) on all threads.
template <class RowsOf>
void by_rows(std::span<const LowRankPart> parts, const float* x, std::int64_t M, std::int64_t K,
             std::int64_t work, const RowsOf& rows_of) {
  const std::int64_t rank = total_rank(parts);
  const Timed timed;
  at::parallel_for(0, M,
                   std::max<std::int64_t>(1, kProductsPerThread / std::max<std::int64_t>(1, work)),
                   [&](std::int64_t begin, std::int64_t end) {
                     thread_local std::vector<float> t;
                     t.resize(static_cast<std::size_t>(kRowsOfInput * rank));
                     for (std::int64_t m = begin; m < end; m += kRowsOfInput) {
                       const std::int64_t rows = std::min(kRowsOfInput, end - m);
                       inputs(parts, x + m * K, rows, K, t.data(), rank);
                       rows_of(m, rows, t.data());
                     }
                   });
}

template <class Number>
void put_inputs(std::span<const LowRankPart> parts, const float* x, std::int64_t M, std::int64_t K,
                Number* out, std::int64_t columns, std::int64_t stride) {
  const std::int64_t rank = total_rank(parts);
  check_input(M, K);
  check_width(rank, columns, stride, M);
  by_rows(parts, x, M, K, rank * K, [&](std::int64_t m, std::int64_t rows, const float* t) {
    for (std::int64_t j = 0; j < rows; ++j) {
      Number* row = out + (m + j) * stride;
      convert(t + j * rank, rank, row);
      std::fill(row + rank, row + columns, Number{0});
    }
  });
}

void check_rows_of(WeightType type, std::int64_t begin, std::int64_t end, std::int64_t K) {
  if (begin < 0 || end < begin || begin % kLowRankRows != 0 || K < 0 || K % block_size(type) != 0) {
    throw Error(Errc::invalid, "rows " + std::to_string(begin) + " to " + std::to_string(end) +
                                   " of " + std::to_string(K) + " numbers in " +
                                   std::string(name(type)));
  }
}

// `block(n, rows)` for every kLowRankRows rows from `begin` to `end`, on all threads.
template <class Block>
void by_blocks(std::int64_t begin, std::int64_t end, std::int64_t columns, const Block& block) {
  const std::int64_t blocks = (end - begin + kLowRankRows - 1) / kLowRankRows;
  const std::int64_t numbers = kLowRankRows * std::max<std::int64_t>(1, columns);
  const Timed timed;
  at::parallel_for(0, blocks, std::max<std::int64_t>(1, kNumbersPerPiece / numbers),
                   [&](std::int64_t first, std::int64_t last) {
                     for (std::int64_t i = first; i < last; ++i) {
                       const std::int64_t n = begin + i * kLowRankRows;
                       block(n, std::min(kLowRankRows, end - n));
                     }
                   });
}

template <class Number, class Unpack, class Columns>
void beside(WeightType type, const void* w, std::int64_t begin, std::int64_t end, std::int64_t K,
            std::span<const LowRankPart> parts, Number* out, std::int64_t columns, Unpack unpack,
            const Columns& low_rank_columns) {
  const std::int64_t rank = total_rank(parts);
  check_rows_of(type, begin, end, K);
  check_width(K + rank, columns, columns, 1);
  const std::int64_t bytes = row_bytes(type, K);
  by_blocks(begin, end, columns, [&](std::int64_t n, std::int64_t rows) {
    Number* to = out + (n - begin) * columns;
    for (std::int64_t i = 0; i < rows; ++i) {
      Number* row = to + i * columns;
      unpack(static_cast<const std::uint8_t*>(w) + (n + i) * bytes, K / block_size(type), row);
      std::fill(row + K + rank, row + columns, Number{0});
    }
    std::int64_t at = K;
    for (const LowRankPart& part : parts) {
      low_rank_columns[index(part.type)](part.b, part.rank, part.scale, n, n + rows, to + at,
                                         columns);
      at += part.rank;
    }
  });
}

}  // namespace

std::int64_t packed_low_rank_numbers(std::int64_t N, std::int64_t rank) {
  std::int64_t rows = 0, numbers = 0;
  if (N < 0 || rank < 0 || __builtin_add_overflow(N, kLowRankRows - 1, &rows) ||
      __builtin_mul_overflow(rows / kLowRankRows * kLowRankRows, rank, &numbers) ||
      numbers > std::numeric_limits<std::int64_t>::max() / 4) {
    throw Error(Errc::invalid, "a low-rank update of " + std::to_string(N) + " rows and rank " +
                                   std::to_string(rank));
  }
  return numbers;
}

void pack_low_rank(WeightType type, const void* b, std::int64_t N, std::int64_t rank,
                   void* packed) {
  check_plain(type);
  const auto size = static_cast<std::size_t>(block_bytes(type));
  std::memset(packed, 0, static_cast<std::size_t>(packed_low_rank_numbers(N, rank)) * size);
  const auto* from = static_cast<const std::uint8_t*>(b);
  auto* to = static_cast<std::uint8_t*>(packed);
  for (std::int64_t n = 0; n < N; ++n) {
    for (std::int64_t i = 0; i < rank; ++i, from += size) {
      const std::int64_t at = (n / kLowRankRows * rank + i) * kLowRankRows + n % kLowRankRows;
      std::memcpy(to + static_cast<std::size_t>(at) * size, from, size);
    }
  }
}

std::int64_t total_rank(std::span<const LowRankPart> parts) {
  std::int64_t total = 0;
  for (const LowRankPart& part : parts) {
    check_plain(part.type);
    if (part.rank < 0) {
      throw Error(Errc::invalid, "a low-rank update of rank " + std::to_string(part.rank));
    }
    total += part.rank;
  }
  return total;
}

void add_low_rank(std::span<const LowRankPart> parts, const float* x, std::int64_t M,
                  std::int64_t K, float* y, std::int64_t N, std::int64_t y_stride) {
  const std::int64_t rank = total_rank(parts);
  check_input(M, K);
  if (N < 0 || (y_stride < N && M > 1)) {
    throw Error(Errc::invalid, "a low-rank update of " + std::to_string(N) + " columns into rows " +
                                   std::to_string(y_stride) + " apart");
  }
  by_rows(parts, x, M, K, rank * (K + N), [&](std::int64_t m, std::int64_t rows, const float* t) {
    for (const LowRankPart& part : parts) {
      const LowRankAdd update{part.b, part.rank,        part.scale, t,       rows,
                              rank,   y + m * y_stride, N,          y_stride};
      table().add_low_rank[index(part.type)](update, 0, N);
      t += part.rank;
    }
  });
}

void low_rank_inputs(std::span<const LowRankPart> parts, const float* x, std::int64_t M,
                     std::int64_t K, float* out, std::int64_t columns, std::int64_t stride) {
  put_inputs(parts, x, M, K, out, columns, stride);
}

void low_rank_inputs_bf16(std::span<const LowRankPart> parts, const float* x, std::int64_t M,
                          std::int64_t K, std::uint16_t* out, std::int64_t columns,
                          std::int64_t stride) {
  put_inputs(parts, x, M, K, out, columns, stride);
}

void dequantize_beside(WeightType type, const void* w, std::int64_t begin, std::int64_t end,
                       std::int64_t K, std::span<const LowRankPart> parts, float* out,
                       std::int64_t columns) {
  beside(type, w, begin, end, K, parts, out, columns, table().to_f32[index(type)],
         table().low_rank_columns_f32);
}

void dequantize_beside_bf16(WeightType type, const void* w, std::int64_t begin, std::int64_t end,
                            std::int64_t K, std::span<const LowRankPart> parts, std::uint16_t* out,
                            std::int64_t columns) {
  beside(type, w, begin, end, K, parts, out, columns, table().to_bf16[index(type)],
         table().low_rank_columns_bf16);
}

void dequantize_merged(WeightType type, const void* w, std::int64_t begin, std::int64_t end,
                       std::int64_t K, std::span<const LowRankPart> parts, float* out) {
  (void)total_rank(parts);
  check_rows_of(type, begin, end, K);
  const auto& kernels = table();
  by_blocks(begin, end, K, [&](std::int64_t n, std::int64_t rows) {
    float* to = out + (n - begin) * K;
    kernels.to_f32[index(type)](static_cast<const std::uint8_t*>(w) + n * row_bytes(type, K),
                                rows * (K / block_size(type)), to);
    for (const LowRankPart& part : parts) {
      const auto* block =
          static_cast<const std::uint8_t*>(part.b) + n * part.rank * block_bytes(part.type);
      kernels.low_rank_merge[index(part.type)](part.a, block, part.rank, part.scale, rows, K, to);
    }
  });
}

}  // namespace mneme::kernels
