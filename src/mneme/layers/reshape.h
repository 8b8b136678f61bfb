// Other sizes for a tensor, without the dispatcher where nobody else holds it: a decoding step gives sizes to more tensors
// than it runs kernels.
#pragma once

#include "mneme/core/unwritten.h"

#include <ATen/core/Tensor.h>
#include <c10/util/accumulate.h>

#include <utility>

namespace mneme {

/// The same numbers in these sizes, copied only where they do not lie in that order. Throws c10::Error for another number
/// of them.
inline at::Tensor reshaped(at::Tensor x, at::IntArrayRef sizes) {
  const bool ours = held_alone(x) && x.is_contiguous() && !x.requires_grad() &&
                    c10::multiply_integers(sizes) == x.numel();
  if (!ours) return x.reshape(sizes);
  x.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return x;
}

}  // namespace mneme
