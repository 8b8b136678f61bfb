// Explained: how much of the variance of vectors lies along axes that other vectors gave.
#pragma once

#include <ATen/core/Tensor.h>

namespace mneme::bench {

/// The share of all variance that lies along the first `ranks` [H] int64 of axes [H,d,d], orthogonal, column c being the
/// c-th: covariance [H,d,d] -> [H] f64. A rank is from 1 to d.
[[nodiscard]] at::Tensor explained_share(const at::Tensor& covariance, const at::Tensor& axes,
                                         const at::Tensor& ranks);

}  // namespace mneme::bench
