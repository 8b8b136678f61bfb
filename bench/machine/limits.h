// What this machine can do at most, measured: how fast it reads memory and multiplies matrices. Speeds of models are
// told as shares of these.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace mneme::bench {

/// Load of the last minute by processes, this one not yet among them; 0 where the system does not tell.
[[nodiscard]] double machine_load();

/// Bytes a second that all threads together read from memory that no cache holds: the best of several passes over 256 MiB.
[[nodiscard]] double read_bandwidth();

/// FLOPs a second of ATen's product of two matrices of 1,536 x 1,536 numbers of this type (f32 or bf16): the best of
/// several. A multiplication and its addition are two.
[[nodiscard]] double product_rate(at::ScalarType type);

}  // namespace mneme::bench
