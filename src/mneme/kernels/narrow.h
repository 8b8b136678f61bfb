// Products of many rows with plain weights that are kept rounded to numbers which this CPU multiplies faster than single
// precision:  y = act(x W' + b).
//
//   bf16   x and W rounded to bf16                                               (AVX-512 with bf16)
//   int16  x_mk ~ s_m u_mk, W_nk ~ t_n c_nk with |u|, |c| <= 2047: a row has one scale    (AVX2)
//   int8   (R x)_mk ~ s_mg u_mk, (R W)_nk ~ t_ng c_nk with |u|, |c| <= 127: 128 numbers have one scale   (AVX-512 with VNNI)
//
// Products of integers add up exactly; sums of scaled ones, and of bf16, are in single precision. R turns every 32 numbers
// by a Hadamard matrix: x W' = (R x)(R W)', while a number that stands out, by which all in its group would be rounded, is
// spread over them (Ashkboos et al. 2024, arXiv:2404.00456).
#pragma once

#include "mneme/kernels/activation.h"
#include "mneme/weights/weight_type.h"

#include <cstdint>
#include <memory>
#include <span>

namespace mneme::kernels {

struct NarrowKernels;

enum class NarrowType : std::uint8_t { bf16, int16, int8 };

/// Whether the level in use multiplies such numbers faster than libtorch does any.
[[nodiscard]] bool multiplies(NarrowType type);

/// W [N,K] in that form, with the columns of a panel side by side.
class NarrowMatrix {
 public:
  /// Rounds rows of row_bytes(type, K) on all threads. Throws Error (invalid) on a quantized type or a negative size, Error
  /// (unsupported) where the level does not multiply such numbers.
  NarrowMatrix(NarrowType form, WeightType type, const void* rows, std::int64_t N, std::int64_t K);
  ~NarrowMatrix();
  NarrowMatrix(NarrowMatrix&&) noexcept;
  NarrowMatrix& operator=(NarrowMatrix&&) noexcept;

  [[nodiscard]] std::int64_t rows() const noexcept { return N_; }
  [[nodiscard]] std::int64_t columns() const noexcept { return K_; }
  [[nodiscard]] std::int64_t bytes() const noexcept;
  [[nodiscard]] const std::uint32_t* data() const noexcept;
  /// Those of the level that made it, which alone read it.
  [[nodiscard]] const NarrowKernels& kernels() const noexcept { return *kernels_; }

 private:
  struct Content;
  const NarrowKernels* kernels_;
  std::int64_t N_, K_;
  std::unique_ptr<Content> content_;
};

/// One of several weights of one form that meet the same rows.
struct NarrowPart {
  const NarrowMatrix* w;
  const float* bias;  ///< [N], or null
  Activation activation;
  float* y;               ///< [M,N], rows y_stride apart; not overlapping x
  std::int64_t y_stride;  ///< at least N
};

/// y = act(x W' + b) of every part for x [M,K], rows x_stride apart. Runs on all threads. Throws Error (invalid) on a shape
/// that does not fit or parts of several forms.
void multiply(std::span<const NarrowPart> parts, const float* x, std::int64_t M, std::int64_t K,
              std::int64_t x_stride);

}  // namespace mneme::kernels
