// Bootstrap: intervals of means and of ratios of means, over questions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mneme::bench {

/// A figure and its interval.
struct Estimate {
  double value = 0, low = 0, high = 0;
};

/// Percentile intervals (95 %) from resampled questions. All figures of one Bootstrap use the same resamples, so that
/// ratios and differences are paired.
class Bootstrap {
 public:
  /// For n questions, n > 0; the same seed gives the same resamples.
  explicit Bootstrap(std::size_t n, std::size_t draws = 10'000, std::uint64_t seed = 1);

  /// Mean of x[n].
  [[nodiscard]] Estimate mean(std::span<const double> x) const;
  /// Mean of x[n] over mean of y[n]; resamples in which y is 0 throughout are left out. NaN where y is 0.
  [[nodiscard]] Estimate ratio(std::span<const double> x, std::span<const double> y) const;

 private:
  std::size_t n_, draws_;
  std::vector<std::uint32_t> picks_;  // [draws, n]
};

}  // namespace mneme::bench
