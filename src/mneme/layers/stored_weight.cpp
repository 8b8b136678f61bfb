#include "mneme/layers/stored_weight.h"

#include "mneme/core/error.h"
#include "mneme/kernels/packed.h"
#include "mneme/kernels/quantized.h"

#include <ATen/ATen.h>

#include <atomic>

namespace mneme {
namespace {

std::atomic<std::int64_t> all_narrow_bytes{0};

}  // namespace

FileWeight::FileWeight(WeightTensor weight) : weight_(std::move(weight)) {}

FileWeight::~FileWeight() {
  for (const auto& narrow : narrow_) {
    if (narrow.matrix) all_narrow_bytes -= narrow.matrix->bytes();
  }
}

std::int64_t FileWeight::narrow_bytes() { return all_narrow_bytes; }

const kernels::NarrowMatrix* FileWeight::narrow(kernels::NarrowType form) const {
  if (is_quantized(weight_.type) || weight_.shape.size() != 2 || !kernels::multiplies(form))
    return nullptr;
  auto& narrow = narrow_[static_cast<std::size_t>(form)];
  std::call_once(narrow.asked, [&] {
    const auto expected = 2 * weight_.elements();
    if (all_narrow_bytes + expected > kMostNarrowBytes) return;
    narrow.matrix = std::make_unique<const kernels::NarrowMatrix>(
        form, weight_.type, weight_.data, weight_.shape[0], weight_.shape[1]);
    all_narrow_bytes += narrow.matrix->bytes();
  });
  return narrow.matrix.get();
}

const kernels::PackedMatrix* FileWeight::packed() const {
  if (const auto* packed = packed_.load(std::memory_order_acquire)) return packed;
  if (!is_quantized(weight_.type) || weight_.shape.size() != 2) return nullptr;
  std::call_once(packing_, [this] {
    packed_matrix_ = std::make_unique<const kernels::PackedMatrix>(
        weight_.type, weight_.data, weight_.shape[0], weight_.shape[1]);
    packed_.store(packed_matrix_.get(), std::memory_order_release);
  });
  return packed_matrix_.get();
}

at::Tensor FileWeight::rows(std::int64_t begin, std::int64_t end, at::ScalarType dtype) const {
  const auto K = weight_.shape.back();
  MNEME_ASSERT(begin >= 0 && begin <= end && end * K <= weight_.elements());
  const auto* data = weight_.data + begin * row_bytes(weight_.type, K);
  const auto same = (weight_.type == WeightType::f32 && dtype == at::kFloat) ||
                    (weight_.type == WeightType::bf16 && dtype == at::kBFloat16);
  if (same) {
    return at::from_blob(
        const_cast<std::byte*>(data), {end - begin, K}, [keep = weight_.owner](void*) {},
        at::TensorOptions().dtype(dtype));
  }
  auto out = at::empty({end - begin, K}, at::TensorOptions().dtype(dtype));
  if (dtype == at::kBFloat16) {
    kernels::dequantize_bf16(weight_.type, data, end - begin, K,
                             reinterpret_cast<std::uint16_t*>(out.data_ptr()));
  } else {
    MNEME_ASSERT(dtype == at::kFloat);
    kernels::dequantize(weight_.type, data, end - begin, K, out.data_ptr<float>());
  }
  return out;
}

Parameter parameter_from(WeightTensor weight) {
  Parameter out;
  out.frozen = true;
  if (weight.shape.size() < 2) {
    out.tensor = dequantize(weight);
  } else {
    out.stored = std::make_shared<FileWeight>(std::move(weight));
  }
  return out;
}

}  // namespace mneme
