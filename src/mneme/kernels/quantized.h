// Products with weights that stay in their storage format, and their unpacking.
#pragma once

#include "mneme/kernels/low_rank.h"
#include "mneme/kernels/packed.h"
#include "mneme/weights/weight_type.h"

#include <cstdint>
#include <memory>
#include <span>

namespace mneme::kernels {

struct ActivationRows;

/// Unpacks n_rows rows of K numbers, stored one after another, to single precision: out [n_rows,K]. The bits are the
/// same at every level. Runs on all threads. Throws Error (invalid) where K is not whole blocks.
void dequantize(WeightType type, const void* rows, std::int64_t n_rows, std::int64_t K, float* out);

/// The same to bf16, each number rounded to the nearest, ties to even.
void dequantize_bf16(WeightType type, const void* rows, std::int64_t n_rows, std::int64_t K,
                     std::uint16_t* out);

/// What quantized weights meet in a product.
enum class Activations : std::uint8_t {
  q8,  ///< 8 bits with one scale per 32 numbers: fastest, but rounding makes jumps of small differences
  q16,  ///< 16 bits with one scale per 32 numbers, as two integers of 8 bits: twice the products
  f32,  ///< the numbers themselves
};

/// Rows of activations together with their integer form, made once for all the weights that they meet. It can be refilled;
/// memory is kept for that. Borrows the rows themselves.
class QuantizedRows {
 public:
  QuantizedRows();
  /// Takes x [M,K], which must outlive this object, and quantizes each block of 32 to scale * [-127,127]. Where K is not
  /// a multiple of 32 only weights of a plain type can be multiplied.
  QuantizedRows(const float* x, std::int64_t M, std::int64_t K);
  ~QuantizedRows();
  QuantizedRows(QuantizedRows&&) noexcept;
  QuantizedRows& operator=(QuantizedRows&&) noexcept;

  /// As the constructor, or as another form; for f32 weights of every type meet x itself.
  void assign(const float* x, std::int64_t M, std::int64_t K, Activations form = Activations::q8);

  [[nodiscard]] std::int64_t rows() const noexcept;
  [[nodiscard]] std::int64_t columns() const noexcept;
  [[nodiscard]] bool quantized() const noexcept;
  /// What the kernels read.
  [[nodiscard]] const ActivationRows& view() const noexcept;

 private:
  struct Content;
  std::unique_ptr<Content> content_;
};

/// QuantizedRows of x [M,K].
[[nodiscard]] QuantizedRows quantize_activations(const float* x, std::int64_t M, std::int64_t K);

/// One of several weights that meet the same activations.
struct MatvecPart {
  WeightType type;
  const void* w;  ///< [N,K] in rows of row_bytes(type, K)
  std::int64_t N;
  float* y;                                    ///< [M,N], rows y_stride apart
  std::int64_t y_stride;                       ///< at least N
  std::span<const LowRankPart> low_rank = {};  ///< added to y; they meet the rows themselves
  const PackedMatrix* packed = nullptr;        ///< the same W, for products with integer rows
};

/// y = x W' for each part, without unpacking W to memory, in one run over all threads: meant for few rows (without
/// packed weights up to about 16: beyond, dequantize and a matrix product are faster). Packed weights meet the integer
/// form of the rows where they have one, all others the rows themselves. Sums are in single precision. Throws Error
/// (invalid) on a shape that does not fit.
void matvec(std::span<const MatvecPart> parts, const QuantizedRows& x);

/// The same for x [M,K] in single precision, quantized here if a part needs it.
void matvec(std::span<const MatvecPart> parts, const float* x, std::int64_t M, std::int64_t K,
            Activations activations = Activations::q8);

/// y [M,N] = x [M,K] W [N,K]'; a quantized W that is to meet integer rows is packed for this one call.
void matvec(WeightType type, const void* w, std::int64_t N, std::int64_t K, const float* x,
            std::int64_t M, float* y, Activations activations = Activations::q8);

}  // namespace mneme::kernels
