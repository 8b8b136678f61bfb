// libtorch's FBGEMM, beside which our own products are measured.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace mneme::bench {

/// x [M,K] f32 to x W' [M,N] f32 by 8-bit products of weights [N,K] f32, packed now: one scale for all of a matrix, and one
/// for all rows of x. Null where this build of libtorch or the CPU has none.
[[nodiscard]] std::function<at::Tensor(const at::Tensor& x)> fbgemm_product(
    const at::Tensor& weight);

}  // namespace mneme::bench
