// Tensors that live for a part of a step: a model makes hundreds of them for every token, of the same few sizes.
#pragma once

#include <ATen/core/TensorBase.h>
#include <c10/util/ArrayRef.h>

namespace mneme {

/// An f32 tensor on the CPU whose numbers are still to be written. Small ones get memory that this thread used last, which
/// the caches still hold, and skip the dispatcher; both take longer than a small product. Throws std::bad_alloc.
[[nodiscard]] at::TensorBase unwritten(at::IntArrayRef sizes);

}  // namespace mneme
