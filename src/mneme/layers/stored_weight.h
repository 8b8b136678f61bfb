// A loaded checkpoint's weight as a Parameter's storage: memory-mapped, quantized weights staying quantized.
#pragma once

#include "mneme/core/params.h"
#include "mneme/weights/weight_tensor.h"

#include <memory>

namespace mneme {

/// A matrix [out, in] or vector in its file's form.
class FileWeight final : public StoredWeight {
 public:
  explicit FileWeight(WeightTensor weight) : weight_(std::move(weight)) {}

  [[nodiscard]] std::vector<std::int64_t> sizes() const override { return weight_.shape; }
  [[nodiscard]] std::int64_t bytes() const override { return weight_.bytes; }
  [[nodiscard]] std::string type() const override { return std::string(name(weight_.type)); }
  [[nodiscard]] at::Tensor rows(std::int64_t begin, std::int64_t end,
                                at::ScalarType dtype) const override;
  [[nodiscard]] const WeightTensor& weight() const { return weight_; }

 private:
  WeightTensor weight_;
};

/// The parameter that holds a checkpoint's tensor: matrices stay stored, vectors become f32 tensors; both are frozen.
Parameter parameter_from(WeightTensor weight);

}  // namespace mneme
