#include "mneme/probes/moments.h"

#include "mneme/core/error.h"

#include <ATen/ATen.h>

namespace mneme {
namespace {

// Below this no direction is told from another.
constexpr double kNothing = 1e-300;

/// Eigenvalues [H,d] and eigenvectors as columns [H,d,d] of symmetric matrices, largest first.
std::pair<at::Tensor, at::Tensor> falling(const at::Tensor& matrices) {
  const auto [values, vectors] = at::linalg_eigh(matrices);
  return {values.flip(-1), vectors.flip(-1)};
}

}  // namespace

Moments::Moments(std::int64_t heads, std::int64_t width)
    : sum_(at::zeros({heads, width}, at::kDouble)),
      outer_(at::zeros({heads, width, width}, at::kDouble)) {}

void Moments::add(const at::Tensor& vectors) {
  MNEME_ASSERT(vectors.dim() == 3 && vectors.size(0) == sum_.size(0) &&
               vectors.size(2) == sum_.size(1));
  const auto x = vectors.to(at::kDouble).contiguous();
  sum_ += x.sum(1);
  outer_ += at::bmm(x.transpose(1, 2), x);
  count_ += x.size(1);
}

std::vector<Moments> moments_of_layers(std::int64_t layers, std::int64_t heads,
                                       std::int64_t width) {
  std::vector<Moments> out;
  for (std::int64_t i = 0; i < layers; ++i) out.emplace_back(heads, width);
  return out;
}

at::Tensor Moments::mean() const { return sum_ / static_cast<double>(count_); }
at::Tensor Moments::second() const { return outer_ / static_cast<double>(count_); }
at::Tensor Moments::covariance() const {
  const auto m = mean();
  return second() - m.unsqueeze(2) * m.unsqueeze(1);
}

QueryFilters query_filters(const Moments& queries, std::int64_t kv_heads) {
  const auto second = queries.second(), mean = queries.mean();
  const auto Hq = mean.size(0), d = mean.size(1), G = Hq / kv_heads;
  const auto [values, vectors] = falling(second);
  auto own = vectors.select(2, 0);  // [Hq,d]
  const auto along = (own * mean).sum(1, true);
  own = at::where(along < 0, -own, own);
  auto filters = own.view({kv_heads, G, d}).mean(1);
  // Heads of a group that look in opposite directions share none; then the first one's stands.
  const auto size = filters.norm(2, 1, true);
  filters = at::where(size > 1e-6, filters / size.clamp_min(kNothing),
                      own.view({kv_heads, G, d}).select(1, 0));
  QueryFilters out;
  out.share = values.select(1, 0) / values.sum(1).clamp_min(kNothing);
  out.positive = (filters.unsqueeze(1) * mean.view({kv_heads, G, d})).sum(2).reshape({Hq});
  out.filters = filters;
  return out;
}

PrincipalAxes principal_axes(const Moments& vectors) {
  auto [values, axes] = falling(vectors.covariance());
  values = values.clamp_min(0);
  // Which way an axis points is free: its largest number is made positive, so that a profile can be compared with another.
  const auto largest = axes.gather(1, axes.abs().argmax(1, true));  // [H,1,d]
  return {at::where(largest < 0, -axes, axes), values / values.sum(1, true).clamp_min(kNothing)};
}

at::Tensor rank_at(const at::Tensor& variance, double share) {
  const auto d = variance.size(-1);
  // The last sums differ from 1 by rounding.
  return ((variance.to(at::kDouble).cumsum(-1) < share - 1e-9).sum(-1) + 1).clamp_max(d);
}

}  // namespace mneme
