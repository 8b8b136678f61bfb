#include "mneme/layers/rope.h"

#include <ATen/ATen.h>

#include "../contracts/gradcheck.h"
#include <cmath>
#include <gtest/gtest.h>

namespace mneme {
namespace {

struct Case {
  RopePairs pairs;
  std::int64_t width;
  double theta;
};

class RopeTest : public ::testing::TestWithParam<Case> {
 protected:
  const Rope rope_{GetParam().width, GetParam().theta, GetParam().pairs};
  const std::int64_t d_ = GetParam().width;
};

/// [B,H,T,d] turned one pair after another.
at::Tensor brute_force(const at::Tensor& x, const at::Tensor& positions, const Case& c,
                       double sign = 1) {
  auto out = x.to(at::kDouble).clone();
  for (std::int64_t b = 0; b < x.size(0); ++b) {
    for (std::int64_t h = 0; h < x.size(1); ++h) {
      for (std::int64_t t = 0; t < x.size(2); ++t) {
        auto* v = out[b][h][t].mutable_data_ptr<double>();
        const auto p = static_cast<double>(positions[b][t].item<std::int64_t>());
        for (std::int64_t i = 0; i < c.width / 2; ++i) {
          const auto angle =
              sign * p *
              std::pow(c.theta, -2.0 * static_cast<double>(i) / static_cast<double>(c.width));
          const auto first = c.pairs == RopePairs::halves ? i : 2 * i,
                     second = c.pairs == RopePairs::halves ? i + c.width / 2 : 2 * i + 1;
          const auto a = v[first], z = v[second];
          v[first] = a * std::cos(angle) - z * std::sin(angle);
          v[second] = z * std::cos(angle) + a * std::sin(angle);
        }
      }
    }
  }
  return out;
}

TEST_P(RopeTest, EqualsTurningPairByPair) {
  const auto x = check::normal({2, 3, 5, d_}, 1);
  const auto positions =
      at::tensor({0, 1, 2, 500, 8191, 7, 7, 0, 100000, 3}, at::kLong).view({2, 5});
  const auto want = brute_force(x, positions, GetParam());
  EXPECT_TRUE(check::close(rope_(x, positions), want, 1e-6));
  EXPECT_TRUE(check::close(rope_(x.to(at::kDouble), positions), want, 1e-12));
  EXPECT_TRUE(
      check::close(rope_(x, positions, true), brute_force(x, positions, GetParam(), -1), 1e-6));
}

TEST_P(RopeTest, BackIsTheInverse) {
  const auto x = check::normal({1, 2, 4, d_}, 2);
  const auto positions = at::tensor({3, 77, 4095, 60000}, at::kLong).view({1, 4});
  EXPECT_TRUE(check::close(rope_(rope_(x, positions), positions, true), x, 1e-6));
}

TEST_P(RopeTest, TheKernelEqualsTheDifferentiableForm) {
  const auto x = check::normal({1, 3, 6, d_}, 3);
  const auto positions = at::tensor({0, 5, 4, 4095, 65537, 1}, at::kLong).view({1, 6});
  auto y = x.clone();
  rope_.rotate(y.mutable_data_ptr<float>(), 3, 6, positions.const_data_ptr<std::int64_t>());
  EXPECT_TRUE(check::close(y, rope_(x.to(at::kDouble), positions).to(at::kFloat), 1e-5));
  const auto back = -positions;
  rope_.rotate(y.mutable_data_ptr<float>(), 3, 6, back.const_data_ptr<std::int64_t>());
  EXPECT_TRUE(check::close(y, x, 1e-5)) << "negative positions turn back";
}

TEST_P(RopeTest, TheKernelsGradientEqualsTheFormulas) {
  const auto positions = at::tensor({0, 5, 4, 4095, 65537, 1}, at::kLong).view({1, 6});
  const auto weights = check::normal({1, 3, 6, d_}, 5);
  const auto gradient = [&](at::ScalarType type, bool back) {
    const auto x = check::normal({1, 3, 6, d_}, 4).to(type).requires_grad_();
    (rope_(x, positions, back) * weights.to(type)).sum().backward();
    return x.grad().to(at::kFloat);
  };
  for (const bool back : {false, true})
    EXPECT_TRUE(check::close(gradient(at::kFloat, back), gradient(at::kDouble, back), 1e-5));
}

TEST_P(RopeTest, ProductsDependOnTheDistanceAlone) {
  const auto q = check::normal({1, 1, 1, d_}, 4, at::kDouble),
             k = check::normal({1, 1, 1, d_}, 5, at::kDouble);
  const auto product = [&](std::int64_t at_q, std::int64_t at_k) {
    return (rope_(q, check::positions(1, 1, at_q)) * rope_(k, check::positions(1, 1, at_k)))
        .sum()
        .item<double>();
  };
  EXPECT_NEAR(product(17, 5), product(1012, 1000), 1e-9);
  EXPECT_NEAR(product(0, 0), (q * k).sum().item<double>(), 1e-12);
  EXPECT_GT(std::abs(product(17, 5) - product(17, 6)), 1e-6);
}

TEST_P(RopeTest, Gradients) {
  const auto x = check::normal({2, 2, 3, d_}, 6, at::kDouble);
  EXPECT_TRUE(
      check::gradients_match([&] { return rope_(x, check::positions(2, 3, 11)); }, {{"x", x}}));
}

INSTANTIATE_TEST_SUITE_P(Layouts, RopeTest,
                         ::testing::Values(Case{RopePairs::halves, 2, 10000},
                                           Case{RopePairs::halves, 64, 10000},
                                           Case{RopePairs::adjacent, 64, 100000},
                                           Case{RopePairs::adjacent, 10, 500},
                                           Case{RopePairs::halves, 12, 10000}),
                         [](const auto& info) {
                           return (info.param.pairs == RopePairs::halves ? "halves" : "adjacent") +
                                  std::to_string(info.param.width);
                         });

TEST(Rope, AnOddWidthIsRefused) {
  check::expect_error(Errc::invalid, "even", [] { Rope(7, 10000, RopePairs::halves); });
  check::expect_error(Errc::invalid, "even", [] { Rope(0, 10000, RopePairs::halves); });
}

}  // namespace
}  // namespace mneme
