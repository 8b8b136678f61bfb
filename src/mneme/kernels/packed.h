// Quantized weights in an order that products of few rows read fastest. Made once from the file's own order.
#pragma once

#include "mneme/weights/weight_type.h"

#include <cstdint>
#include <memory>

namespace mneme::kernels {

/// A quantized matrix [N,K] whose rows lie in groups of sixteen, the last group filled up with zeros. A group is
///   scale  f16 [K/32,16], for q4_1 [K/32,2,16]: the scales of a block in all sixteen rows, then its minima; the whole
///          filled up to 64 bytes
///   codes  for 4 bits [K/32,4,16,4] bytes: of block b and row r byte (j, i) holds code 4j + i in its low half and code
///          16 + 4j + i in its high half; for 8 bits [K/32,8,16,4]: code 4j + i, 128 higher than the signed number
/// Sixteen rows are what one vector of AVX-512 holds and two or four of lower levels do: all levels read the same.
class PackedMatrix {
 public:
  /// Repacks rows of row_bytes(type, K) on all threads. Throws Error (invalid) where the type is not quantized or K is not
  /// whole blocks.
  PackedMatrix(WeightType type, const void* rows, std::int64_t N, std::int64_t K);

  [[nodiscard]] WeightType type() const noexcept { return type_; }
  [[nodiscard]] std::int64_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::int64_t columns() const noexcept { return columns_; }
  [[nodiscard]] const std::uint8_t* data() const noexcept { return data_.get(); }
  [[nodiscard]] std::int64_t bytes() const noexcept;

 private:
  WeightType type_;
  std::int64_t rows_, columns_;
  std::shared_ptr<std::uint8_t> data_;
};

}  // namespace mneme::kernels
