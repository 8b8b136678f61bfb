#include "bench/kv/divergence.h"

#include "mneme/core/error.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace mneme::bench {
namespace {

std::vector<double> numbers_of(const at::Tensor& x) {
  const auto values = x.to(at::kDouble).contiguous();
  const auto* data = values.const_data_ptr<double>();
  return {data, data + values.numel()};
}

at::Tensor log_probabilities(const at::Tensor& logits) {
  return logits.to(at::kDouble).log_softmax(-1);
}

std::vector<double> nll_from(const at::Tensor& log_p, std::span<const std::int32_t> came) {
  MNEME_ASSERT(log_p.dim() == 2 && log_p.size(0) == static_cast<std::int64_t>(came.size()));
  auto ids = at::empty({log_p.size(0), 1}, at::kLong);
  std::copy(came.begin(), came.end(), ids.mutable_data_ptr<std::int64_t>());
  return numbers_of(-log_p.gather(1, ids).squeeze(1));
}

}  // namespace

Divergence divergence(const at::Tensor& full, const at::Tensor& method,
                      std::span<const std::int32_t> came) {
  MNEME_ASSERT(full.sizes() == method.sizes());
  const auto p = log_probabilities(full), q = log_probabilities(method);
  Divergence out;
  // Rounding can leave a sum of zeros a hair below zero.
  out.kl = numbers_of((p.exp() * (p - q)).sum(-1).clamp_min(0));
  out.agreement = numbers_of(p.argmax(-1).eq(q.argmax(-1)));
  out.nll = nll_from(q, came);
  return out;
}

std::vector<double> nll_of(const at::Tensor& logits, std::span<const std::int32_t> came) {
  return nll_from(log_probabilities(logits), came);
}

}  // namespace mneme::bench
