#include "bench/statistics/bootstrap.h"

#include <cmath>
#include <gtest/gtest.h>
#include <vector>

namespace mneme::bench {
namespace {

TEST(Bootstrap, IntervalOfAMeanIsTheNormalOne) {
  // 400 values, half 0 and half 1: the mean's standard error is 0.5 / 20.
  std::vector<double> x(400);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = i % 2 == 0 ? 1 : 0;
  const auto e = Bootstrap(x.size()).mean(x);
  EXPECT_DOUBLE_EQ(e.value, 0.5);
  EXPECT_NEAR(e.low, 0.5 - 1.96 * 0.025, 0.004);
  EXPECT_NEAR(e.high, 0.5 + 1.96 * 0.025, 0.004);
}

TEST(Bootstrap, RatiosArePaired) {
  std::vector<double> x(100), y(100);
  for (std::size_t i = 0; i < x.size(); ++i) {
    y[i] = 1 + static_cast<double>(i % 7);
    x[i] = 0.9 * y[i];
  }
  const auto e =
      Bootstrap(x.size()).ratio(x, y);  // the same in every resample, however much y varies
  EXPECT_NEAR(e.value, 0.9, 1e-12);
  EXPECT_NEAR(e.low, 0.9, 1e-12);
  EXPECT_NEAR(e.high, 0.9, 1e-12);
}

TEST(Bootstrap, SameSeedSameInterval) {
  const std::vector<double> x{0, 1, 1, 0, 1, 0.5, 0.25};
  const auto a = Bootstrap(x.size(), 500, 3).mean(x), b = Bootstrap(x.size(), 500, 3).mean(x),
             c = Bootstrap(x.size(), 500, 4).mean(x);
  EXPECT_EQ(a.low, b.low);
  EXPECT_EQ(a.high, b.high);
  EXPECT_TRUE(a.low != c.low || a.high != c.high);
}

TEST(Bootstrap, AShareOfASubsetIsARatio) {
  const std::vector<double> good{1, 0, 1, 1, 0}, hit{1, 0, 0, 1, 0};
  EXPECT_NEAR(Bootstrap(5).ratio(hit, good).value, 2.0 / 3, 1e-12);
  const std::vector<double> none(5, 0.0);
  EXPECT_TRUE(std::isnan(Bootstrap(5).ratio(none, none).value));
}

}  // namespace
}  // namespace mneme::bench
