#include "bench/statistics/bootstrap.h"

#include "mneme/core/error.h"
#include "mneme/core/generator.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace mneme::bench {
namespace {

/// The 2.5th and 97.5th percentile, between neighbours linearly.
Estimate with_interval(double value, std::vector<double> resampled) {
  if (resampled.empty()) return {value, value, value};
  std::sort(resampled.begin(), resampled.end());
  const auto quantile = [&](double q) {
    const double at = q * static_cast<double>(resampled.size() - 1);
    const auto below = static_cast<std::size_t>(at);
    const auto above = std::min(below + 1, resampled.size() - 1);
    return resampled[below] +
           (at - static_cast<double>(below)) * (resampled[above] - resampled[below]);
  };
  return {value, quantile(0.025), quantile(0.975)};
}

}  // namespace

Bootstrap::Bootstrap(std::size_t n, std::size_t draws, std::uint64_t seed)
    : n_(n), draws_(draws), picks_(n * draws) {
  MNEME_ASSERT(n > 0 && n < std::numeric_limits<std::uint32_t>::max());
  Generator generator(seed);
  for (auto& pick : picks_)
    pick = static_cast<std::uint32_t>((std::uint64_t{generator.next()} * n) >> 32);
}

Estimate Bootstrap::mean(std::span<const double> x) const {
  MNEME_ASSERT(x.size() == n_);
  std::vector<double> resampled(draws_);
  for (std::size_t d = 0; d < draws_; ++d) {
    double sum = 0;
    for (std::size_t i = 0; i < n_; ++i) sum += x[picks_[d * n_ + i]];
    resampled[d] = sum / static_cast<double>(n_);
  }
  return with_interval(std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(n_),
                       std::move(resampled));
}

Estimate Bootstrap::ratio(std::span<const double> x, std::span<const double> y) const {
  MNEME_ASSERT(x.size() == n_ && y.size() == n_);
  std::vector<double> resampled;
  for (std::size_t d = 0; d < draws_; ++d) {
    double above = 0, below = 0;
    for (std::size_t i = 0; i < n_; ++i) {
      above += x[picks_[d * n_ + i]];
      below += y[picks_[d * n_ + i]];
    }
    if (below != 0) resampled.push_back(above / below);
  }
  const double below = std::accumulate(y.begin(), y.end(), 0.0);
  const double value = below == 0 ? std::numeric_limits<double>::quiet_NaN()
                                  : std::accumulate(x.begin(), x.end(), 0.0) / below;
  return with_interval(value, std::move(resampled));
}

}  // namespace mneme::bench
