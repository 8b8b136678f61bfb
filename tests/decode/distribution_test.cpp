#include "mneme/decode/distribution.h"

#include "mneme/core/error.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <random>
#include <vector>

namespace mneme::decode {
namespace {

constexpr float kNo = -std::numeric_limits<float>::infinity();

std::vector<float> random_logits(std::mt19937& random, std::size_t n) {
  std::normal_distribution<float> normal(-3, 6);
  std::vector<float> out(n);
  for (auto& x : out) x = random() % 4 ? normal(random) : kNo;
  out[random() % n] = 1.f;
  return out;
}

/// Sizes that hit every tail: of the lanes, of the parts, and above one part.
TEST(Distribution, EqualsLoopsInDoubleAtEverySize) {
  std::mt19937 random(1);
  for (std::size_t n : {1, 2, 15, 16, 17, 1023, 1024, 1025, 4095, 4097, 9000}) {
    const auto logits = random_logits(random, n);
    const auto first = std::max_element(logits.begin(), logits.end());
    ASSERT_EQ(index_of_largest(logits), static_cast<std::size_t>(first - logits.begin())) << n;
    std::vector<float> out(n);
    weights(logits, *first, out);
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double expected = std::exp(static_cast<double>(logits[i]) - *first);
      sum += expected;
      const double tolerance =
          expected > 0 ? expected * (3e-7 + 6e-8 * std::abs(logits[i] - *first)) : 0;
      ASSERT_NEAR(out[i], expected, tolerance) << n << ", " << i;
    }
    ASSERT_NEAR(log_sum_exp(logits, *first), *first + std::log(sum), 1e-6) << n;
    auto in_place = logits;
    weights(in_place, *first, in_place);
    ASSERT_EQ(in_place, out);
  }
}

TEST(Distribution, TheSmallestIndexAmongEquals) {
  std::vector<float> logits(100, 0.f);
  logits[70] = logits[33] = logits[97] = 2.f;
  EXPECT_EQ(index_of_largest(logits), 33u);
  EXPECT_EQ(index_of_largest(std::vector<float>(40, kNo)), 0u);
}

TEST(Distribution, ANaNAnywhereIsRefused) {
  for (std::size_t i = 0; i < 35; ++i) {
    std::vector<float> logits(35, 1.f);
    logits[i] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_THROW((void)index_of_largest(logits), Error) << i;
  }
  EXPECT_THROW((void)log_sum_exp(std::vector<float>(3, kNo), kNo), Error);
}

}  // namespace
}  // namespace mneme::decode
