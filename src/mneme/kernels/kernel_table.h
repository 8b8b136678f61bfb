// KernelTable: the kernels of one level as function pointers. Internal to kernels/: other rooms call the wrappers,
// which check arguments and share the work among threads; a kernel itself checks nothing and runs on one thread.
// This header is compiled with each level's flags: data only, no inline bodies.
#pragma once

#include "mneme/kernels/activation.h"
#include "mneme/kernels/page_view.h"

#include <cstdint>

namespace mneme::kernels {

/// Coefficients of 2^x on [-1/2, 1/2] and of e^x on [-ln 2 / 2, ln 2 / 2], constant term first.
inline constexpr float kExp2[6] = {1.f,           0.693146983f,   0.240222421f,
                                   0.0555073423f, 0.00967151145f, 0.00132647271f};
inline constexpr float kExp[7] = {1.f,           1.00000003f,    0.499999944f,  0.166664310f,
                                  0.0416679960f, 0.00837416090f, 0.00138436665f};

/// Elements of a group that shares a scale in quantized activations and in quantized weights.
inline constexpr std::int64_t kBlock = 32;

/// Rows of a packed matrix that lie side by side, and the bytes of their scales before their codes (PackedMatrix).
inline constexpr std::int64_t kPackedRows = 16;
static constexpr std::int64_t packed_header_bytes(std::int64_t blocks, bool has_minimum) {
  return (blocks * kPackedRows * (has_minimum ? 4 : 2) + 63) / 64 * 64;
}

/// Rows of activations beside their integer form: element k of block b is about scale * q. In two parts row m is the sum
/// of the integer rows 2m and 2m + 1, the second one what rounding left of the first.
struct ActivationRows {
  const float* x;  // [M,K] as given
  std::int64_t M, K;
  const std::int8_t* q;       // [M parts,q_stride] in [-127,127], zero past K
  const float* scale;         // [M parts,block_stride]
  const std::int32_t* total;  // [M parts,block_stride]: the block's sum of q
  const float* scaled_total;  // [M parts,block_stride]: the scale times that
  std::int64_t q_stride;      // K rounded up to whole pairs of blocks
  std::int64_t block_stride;  // K/32 rounded up to a multiple of 16
  std::int64_t parts = 1;     // 1 or 2
};

/// Where quantize_activations writes; the fields are those of ActivationRows.
struct ActivationTarget {
  std::int8_t* q;
  float* scale;
  std::int32_t* total;
  float* scaled_total;
  std::int64_t q_stride, block_stride, parts;
};

/// Some queries of one KV head against some of its pages. Row r = (t - t_begin) * heads + g.
struct AttendBlock {
  const float* q;
  std::int64_t heads, q_head_stride, q_time_stride, t_begin, t_end;
  const std::int64_t* q_positions;  // indexed by t
  const PageView* pages;
  const PositionRange* ranges;  // of each page
  std::int64_t page_begin, page_end;
  const PageView* then;  // the page that the next block begins with, or null
  bool causal;
  std::int64_t window;  // 0: unlimited
  std::int64_t d;
  float scale;
  bool rounds;  // numbers may be rounded before they are multiplied, as Products::bf16 says
  float* out;   // at t_begin of head 0
  std::int64_t out_head_stride, out_time_stride;
  float* lse;                    // nullable, at t_begin of head 0
  std::int64_t lse_head_stride;  // the time stride is 1
};

/// All queries of one KV head against a run of its pages, and what of ObserveTask to add to or to write.
struct ObserveBlock {
  const float* q;
  std::int64_t heads, T, q_head_stride, q_time_stride;  // heads and T at least 1
  const std::int64_t* q_positions;
  const PositionRange* query_ranges;  // of each observe_rows times
  const float* lse;                   // [heads,T]
  const PageView* pages;
  const PositionRange* page_ranges;  // of each page
  std::int64_t page_begin, page_end, page_count;
  std::int64_t first_entry, entries;  // of page_begin, and of all pages
  bool causal;
  std::int64_t window;  // 0: unlimited
  std::int64_t d;
  float scale;
  float* column_sums;        // nullable [heads,entries]
  const float* row_weights;  // nullable [T]
  float* row_sums;           // nullable [heads,T,functionals], of these pages alone
  const float* columns;      // [functionals,entries]
  std::int64_t functionals;
  float* entropy;      // nullable [heads,T], of these pages alone
  float* weights;      // nullable [heads,T,entries]
  float* column_most;  // nullable [heads,entries]
};

/// One row of a rotation: pairs (x[a_i], x[b_i]) turn by the angle whose cosine and sine are given.
struct RotateRows {
  float* x;
  std::int64_t heads, head_stride;  // the same angles for every head
  const float* cosine;              // [pairs]
  const float* sine;                // [pairs]
  float sine_sign;                  // -1 turns back
  std::int64_t pairs;
  bool adjacent;  // pairs (2i, 2i+1), else (i, i + pairs)
};

/// y[m,n] += scale sum_i t[m,i] B[n,i], with B [N,rank] as pack_low_rank lays it out.
struct LowRankAdd {
  const void* b;
  std::int64_t rank;
  float scale;
  const float* t;  // [M,rank], rows t_stride apart
  std::int64_t M, t_stride;
  float* y;  // [M,N], rows y_stride apart
  std::int64_t N, y_stride;
};

/// Rounded rows against panels of a rounded matrix; narrow.inl says how both lie.
struct NarrowBlock {
  const std::uint32_t* x;
  std::int64_t rows, K;
  const std::uint32_t* w;       // the panel of column n_begin
  std::int64_t n_begin, n_end;  // n_begin is a multiple of NarrowKernels::columns
  const float* bias;            // nullable, of column 0
  Activation activation;
  float* y;  // of column 0
  std::int64_t y_stride;
};

/// Products of one NarrowType.
struct NarrowKernels {
  std::int64_t columns;  // of a panel; 0 where the level has no such products
  std::int64_t (*row_words)(std::int64_t K) noexcept;
  std::int64_t (*panel_words)(std::int64_t K) noexcept;
  void (*narrow)(const float* x, std::int64_t rows, std::int64_t x_stride, std::int64_t K,
                 std::uint32_t* out) noexcept;
  /// n rows, as `narrow` gives them, to one panel.
  void (*pack)(const std::uint32_t* rows, std::int64_t n, std::int64_t K,
               std::uint32_t* panel) noexcept;
  void (*multiply)(const NarrowBlock& block) noexcept;
};

/// Rows [t_begin,t_end) of one head of a segment against all T of its rows.
struct SegmentBlock {
  const float *q, *k, *v;  // row 0
  float* out;
  std::int64_t q_stride, k_stride, v_stride, out_stride;  // from one row to the next
  std::int64_t T, t_begin, t_end, d;
  float scale;
};

struct KernelTable {
  const char* level;   // the name of the level that it was compiled for
  std::int64_t lanes;  // floats in a vector

  /// Rows n_begin..n_end of W against every activation row: y[m * y_stride + n]. Indexed by WeightType; w of a quantized
  /// type is packed, and n_begin then a multiple of kPackedRows.
  void (*matvec[6])(const std::uint8_t* w, std::int64_t n_begin, std::int64_t n_end,
                    const ActivationRows& a, float* y, std::int64_t y_stride) noexcept;
  /// The same on weights as stored, without the integer form of the activations.
  void (*matvec_f32[6])(const std::uint8_t* w, std::int64_t n_begin, std::int64_t n_end,
                        const ActivationRows& a, float* y, std::int64_t y_stride) noexcept;
  void (*quantize_activations)(const float* x, std::int64_t M, std::int64_t K,
                               const ActivationTarget& to) noexcept;
  /// `blocks` blocks in sequence to numbers. Indexed by WeightType; a block of a plain type is one number.
  void (*to_f32[6])(const std::uint8_t* blocks_in, std::int64_t blocks, float* out) noexcept;
  void (*to_bf16[6])(const std::uint8_t* blocks_in, std::int64_t blocks,
                     std::uint16_t* out) noexcept;

  /// Rows n_begin..n_end of an update; n_begin is a multiple of 16, n_end too or N. Indexed by WeightType, plain types.
  void (*add_low_rank[3])(const LowRankAdd& update, std::int64_t n_begin,
                          std::int64_t n_end) noexcept;
  /// t[m,i] = sum_k x[m,k] A[i,k], for many rows of x [M,K] and A [rank,K]; rows of t are t_stride apart.
  void (*low_rank_inputs[3])(const void* a, std::int64_t rank, const float* x, std::int64_t M,
                             std::int64_t K, float* t, std::int64_t t_stride) noexcept;
  /// w [rows,K] += scale B A for at most 16 rows, which are the first of one block of packed B.
  void (*low_rank_merge[3])(const void* a, const void* block, std::int64_t rank, float scale,
                            std::int64_t rows, std::int64_t K, float* w) noexcept;
  /// Rows n_begin..n_end of scale B, the first at out, rows stride apart; n_begin is a multiple of 16.
  void (*low_rank_columns_f32[3])(const void* b, std::int64_t rank, float scale,
                                  std::int64_t n_begin, std::int64_t n_end, float* out,
                                  std::int64_t stride) noexcept;
  void (*low_rank_columns_bf16[3])(const void* b, std::int64_t rank, float scale,
                                   std::int64_t n_begin, std::int64_t n_end, std::uint16_t* out,
                                   std::int64_t stride) noexcept;

  PositionRange (*position_range)(const std::int64_t* positions, std::int64_t n) noexcept;
  std::int64_t attend_rows;         // query rows in a block at most
  std::int64_t attend_single_rows;  // with at most so many, a block runs row by row, lanes along d
  std::int64_t (*attend_scratch)(std::int64_t d) noexcept;  // floats
  void (*attend)(const AttendBlock& block, float* scratch) noexcept;
  /// The same in products of bf16, for so many times as many rows in a block; null where the CPU has none.
  std::int64_t attend_bf16_groups;
  std::int64_t (*attend_bf16_scratch)(std::int64_t d) noexcept;
  void (*attend_bf16)(const AttendBlock& block, float* scratch) noexcept;
  std::int64_t observe_rows;  // query times whose range of positions is looked at together
  std::int64_t (*observe_scratch)(std::int64_t d) noexcept;  // floats
  void (*observe)(const ObserveBlock& block, float* scratch) noexcept;
  void (*rotate)(const RotateRows& rows) noexcept;

  /// Quantizes n numbers in groups of `group` with 8 or 4 bits; false where a number is not finite.
  bool (*encode_rows)(const float* x, std::int64_t n, std::int64_t group, int bits,
                      std::uint16_t* scale, std::uint16_t* minimum, std::uint8_t* codes) noexcept;
  /// The same with 4 bits for `tokens` rows of d numbers that share one scale per channel.
  bool (*encode_channels)(const float* x, std::int64_t tokens, std::int64_t d, std::uint16_t* scale,
                          std::uint16_t* minimum, std::uint8_t* codes) noexcept;
  /// One row of n numbers back, as `type`.
  void (*decode_row)(const std::uint8_t* codes, std::int64_t n, std::int64_t group, int bits,
                     const std::uint16_t* scale, const std::uint16_t* minimum, KvType type,
                     void* out) noexcept;
  /// `tokens` rows of d numbers of one group back; out rows are out_stride elements apart.
  void (*decode_channels)(const std::uint8_t* codes, std::int64_t tokens, std::int64_t d,
                          const std::uint16_t* scale, const std::uint16_t* minimum, KvType type,
                          void* out, std::int64_t out_stride) noexcept;

  /// n numbers rounded to `type`.
  void (*round_numbers)(const float* x, std::int64_t n, KvType type, void* out) noexcept;

  void (*exp)(const float* x, float* y, std::int64_t n) noexcept;
  void (*rms_norm)(float* x, const float* addend, const float* weight, float eps,
                   std::int64_t width, float* out) noexcept;
  void (*silu_multiply)(const float* gate, const float* up, float* out, std::int64_t n) noexcept;

  NarrowKernels narrow[3];  // indexed by NarrowType
  std::int64_t (*segment_scratch)(std::int64_t T, std::int64_t d) noexcept;  // floats
  void (*attend_segment)(const SegmentBlock& block, float* scratch) noexcept;
  void (*attend_segment_bf16)(const SegmentBlock& block, float* scratch) noexcept;  // or null
  /// out = weight (v - mean v) / sqrt(var v + eps) + bias for v = x + addend, one row; out may be x or addend.
  void (*layer_norm)(const float* x, const float* addend, const float* weight, const float* bias,
                     float eps, std::int64_t width, float* out) noexcept;
};

[[nodiscard]] const KernelTable& table_base() noexcept;
[[nodiscard]] const KernelTable& table_avx2() noexcept;
[[nodiscard]] const KernelTable& table_avx512() noexcept;

}  // namespace mneme::kernels
