#include "bench/kv/explained.h"

#include "mneme/core/error.h"

#include <ATen/ATen.h>

namespace mneme::bench {

at::Tensor explained_share(const at::Tensor& covariance, const at::Tensor& axes,
                           const at::Tensor& ranks) {
  MNEME_ASSERT(covariance.sizes() == axes.sizes() && ranks.size(0) == axes.size(0));
  const auto C = covariance.to(at::kDouble), P = axes.to(at::kDouble);
  const auto along = (P * at::bmm(C, P)).sum(1);  // [H,d]: p_c' C p_c
  const auto all = C.diagonal(0, 1, 2).sum(1);    // [H]
  return along.cumsum(1).gather(1, (ranks - 1).unsqueeze(1)).squeeze(1) / all;
}

}  // namespace mneme::bench
