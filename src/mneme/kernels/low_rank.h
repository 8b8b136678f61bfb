// Low-rank updates of a matrix beside products with it:  y = W x + s B (A x).
//
// A few rows of x meet them inside matvec (quantized.h). More rows meet them as further columns of both sides of one
// product, [x | A x] [W | s B]', and very many in W + s B A.
#pragma once

#include "mneme/weights/weight_type.h"

#include <cstdint>
#include <span>

namespace mneme::kernels {

/// s B A beside a matrix [N,K].
struct LowRankPart {
  WeightType type;  ///< of a and b: f32, f16 or bf16
  const void* a;    ///< [rank,K]
  const void* b;    ///< B [N,rank] as pack_low_rank lays it out
  std::int64_t rank;
  float scale;
};

/// Rows of B that lie together in its packed form.
inline constexpr std::int64_t kLowRankRows = 16;

/// Numbers in the packed form of B [N,rank]. Throws Error (invalid) where a size is negative or their product too large.
[[nodiscard]] std::int64_t packed_low_rank_numbers(std::int64_t N, std::int64_t rank);

/// Lays B [N,rank] out as [ceil(N/16),rank,16]: sixteen rows together, one column after another, zero past N. Throws
/// Error (invalid) for a quantized type and as packed_low_rank_numbers.
void pack_low_rank(WeightType type, const void* b, std::int64_t N, std::int64_t rank, void* packed);

/// The sum of the ranks. Throws Error (invalid) for a quantized type or a negative rank.
[[nodiscard]] std::int64_t total_rank(std::span<const LowRankPart> parts);

/// y [M,N] += s (x A') B' of every part, for x [M,K], in single precision; rows of y are y_stride apart. Runs on all
/// threads. Throws Error (invalid) on a shape that does not fit.
void add_low_rank(std::span<const LowRankPart> parts, const float* x, std::int64_t M,
                  std::int64_t K, float* y, std::int64_t N, std::int64_t y_stride);

/// The left side of a product of many rows: out [M,columns], rows `stride` apart, holds x A' of every part in turn, then
/// zeros. Sums are in single precision. Runs on all threads. Throws Error (invalid) on a shape that does not fit.
void low_rank_inputs(std::span<const LowRankPart> parts, const float* x, std::int64_t M,
                     std::int64_t K, float* out, std::int64_t columns, std::int64_t stride);

/// The same rounded to bf16.
void low_rank_inputs_bf16(std::span<const LowRankPart> parts, const float* x, std::int64_t M,
                          std::int64_t K, std::uint16_t* out, std::int64_t columns,
                          std::int64_t stride);

/// The right side of a product of many rows: rows [begin,end) of a stored W [N,K], `w` at row 0, each followed by its s B
/// of every part in turn and zeros: out [end-begin,columns]. `begin` is a multiple of kLowRankRows. Runs on all threads.
/// Throws Error (invalid) on a shape that does not fit.
void dequantize_beside(WeightType type, const void* w, std::int64_t begin, std::int64_t end,
                       std::int64_t K, std::span<const LowRankPart> parts, float* out,
                       std::int64_t columns);

/// The same rounded to bf16.
void dequantize_beside_bf16(WeightType type, const void* w, std::int64_t begin, std::int64_t end,
                            std::int64_t K, std::span<const LowRankPart> parts, std::uint16_t* out,
                            std::int64_t columns);

/// Rows [begin,end) of W + s B A of every part, for a stored W [N,K], `w` at row 0: out [end-begin,K]. `begin` is a multiple
/// of kLowRankRows. Sums are in single precision. Its cost does not depend on the rows that W meets: meant for many. Runs
/// on all threads. Throws Error (invalid) on a shape that does not fit.
void dequantize_merged(WeightType type, const void* w, std::int64_t begin, std::int64_t end,
                       std::int64_t K, std::span<const LowRankPart> parts, float* out);

}  // namespace mneme::kernels
