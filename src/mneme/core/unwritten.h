// Tensors that live for a part of a step: a model makes hundreds of them for every token, of the same few sizes.
#pragma once

#include <ATen/core/TensorBase.h>
#include <c10/util/ArrayRef.h>

namespace mneme {

/// An f32 tensor on the CPU whose numbers are still to be written. Small ones are tensors that this thread made before and
/// that nobody holds any more, the one given out last first: its numbers are still in the caches, and neither they nor the
/// tensor itself are allocated. Throws std::bad_alloc.
[[nodiscard]] at::TensorBase unwritten(at::IntArrayRef sizes);

/// Whether the caller is the only one who holds a tensor; that this thread keeps one that it made does not count.
[[nodiscard]] bool held_alone(const at::TensorBase& tensor);

}  // namespace mneme
