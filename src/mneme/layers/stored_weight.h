// A loaded checkpoint's weight as a Parameter's storage: memory-mapped, quantized weights staying quantized.
#pragma once

#include "mneme/core/params.h"
#include "mneme/weights/weight_tensor.h"

#include <memory>
#include <mutex>

namespace mneme::kernels {
class PackedMatrix;
}

namespace mneme {

/// A matrix [out, in] or vector in its file's form.
class FileWeight final : public StoredWeight {
 public:
  explicit FileWeight(WeightTensor weight);
  ~FileWeight() override;

  [[nodiscard]] std::vector<std::int64_t> sizes() const override { return weight_.shape; }
  [[nodiscard]] std::int64_t bytes() const override { return weight_.bytes; }
  [[nodiscard]] std::string type() const override { return std::string(name(weight_.type)); }
  [[nodiscard]] at::Tensor rows(std::int64_t begin, std::int64_t end,
                                at::ScalarType dtype) const override;
  [[nodiscard]] const WeightTensor& weight() const { return weight_; }
  /// A quantized matrix as products of few rows read it, made when first asked for; null for other weights. Safe to ask
  /// from several threads.
  [[nodiscard]] const kernels::PackedMatrix* packed() const;

 private:
  WeightTensor weight_;
  mutable std::once_flag packing_;
  mutable std::unique_ptr<const kernels::PackedMatrix> packed_;
};

/// The parameter that holds a checkpoint's tensor: matrices stay stored, vectors become f32 tensors; both are frozen.
Parameter parameter_from(WeightTensor weight);

}  // namespace mneme
