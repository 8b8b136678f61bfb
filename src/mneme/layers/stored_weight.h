// A loaded checkpoint's weight as a Parameter's storage: memory-mapped, quantized weights staying quantized.
#pragma once

#include "mneme/core/params.h"
#include "mneme/kernels/narrow.h"
#include "mneme/weights/weight_tensor.h"

#include <array>
#include <atomic>
#include <cstdint>
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
  FileWeight(const FileWeight&) = delete;
  FileWeight& operator=(const FileWeight&) = delete;

  [[nodiscard]] std::vector<std::int64_t> sizes() const override { return weight_.shape; }
  [[nodiscard]] std::int64_t bytes() const override { return weight_.bytes; }
  [[nodiscard]] std::string type() const override { return std::string(name(weight_.type)); }
  [[nodiscard]] at::Tensor rows(std::int64_t begin, std::int64_t end,
                                at::ScalarType dtype) const override;
  [[nodiscard]] const WeightTensor& weight() const { return weight_; }
  /// A quantized matrix as products of few rows read it, made when first asked for; null for other weights. Safe to ask
  /// from several threads.
  [[nodiscard]] const kernels::PackedMatrix* packed() const;

  /// A plain matrix rounded to what this CPU multiplies fast: made when first asked for, by any thread, and kept. Null for
  /// a quantized weight, where the level has no such products, and where all copies of this kind would take more memory
  /// than kMostNarrowBytes.
  [[nodiscard]] const kernels::NarrowMatrix* narrow(kernels::NarrowType form) const;

  static constexpr std::int64_t kMostNarrowBytes = std::int64_t{1} << 30;
  /// Bytes that the rounded copies of all weights in this process take.
  [[nodiscard]] static std::int64_t narrow_bytes();

 private:
  struct Narrow {
    std::once_flag asked;
    std::unique_ptr<const kernels::NarrowMatrix> matrix;
  };
  // First, and to be read without a lock: every product asks for it, when memory is busy with other weights.
  mutable std::atomic<const kernels::PackedMatrix*> packed_{nullptr};
  WeightTensor weight_;
  mutable std::once_flag packing_;
  mutable std::unique_ptr<const kernels::PackedMatrix> packed_matrix_;
  mutable std::array<Narrow, 3> narrow_;  // by form
};

/// The parameter that holds a checkpoint's tensor: matrices stay stored, vectors become f32 tensors; both are frozen.
Parameter parameter_from(WeightTensor weight);

}  // namespace mneme
