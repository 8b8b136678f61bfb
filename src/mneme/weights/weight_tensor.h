// WeightTensor: a named tensor as it is stored, still quantized, still in the file's mapping.
#pragma once

#include "mneme/weights/weight_type.h"

#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace at {
class Tensor;
}

namespace mneme {

/// A tensor as stored. The bytes are never copied: `owner` keeps the mapping that holds them alive.
struct WeightTensor {
  std::string name;
  WeightType type = WeightType::f32;
  std::vector<std::int64_t> shape;  ///< PyTorch order, rows first: [out, in]; empty for a scalar
  const std::byte* data =
      nullptr;  ///< row-major; rows of a quantized tensor are whole blocks of its last dimension
  std::int64_t bytes = 0;
  std::shared_ptr<const void> owner;

  /// Numbers in the tensor (blocks count as the numbers they stand for).
  [[nodiscard]] std::int64_t elements() const noexcept;
};

/// The plain type that stores numbers of an ATen type as they are: f32, f16 or bf16; nothing for any other.
[[nodiscard]] std::optional<WeightType> weight_type(at::ScalarType type) noexcept;

/// The tensor as ATen sees it: f32, f16 and bf16 become a view of the mapping without a copy (a
/// copy only where the file left the data misaligned). Writing to the view changes neither the file
/// nor other processes, but every other view of the same checkpoint: clone what is to be trained.
/// Throws `unsupported` for quantized types: see dequantize().
at::Tensor to_tensor(const WeightTensor& weight);

/// A fresh f32 tensor of the weight's shape, whatever its type: the plain reference form, one
/// scalar loop a format. The kernels are checked against it.
at::Tensor dequantize(const WeightTensor& weight);

}  // namespace mneme
