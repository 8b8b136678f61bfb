#include "mneme/kernels/glu.h"

#include "mneme/core/error.h"

#include "at_level.h"

namespace mneme::kernels {
namespace {

class SiluMultiply : public AtLevel {};

TEST_P(SiluMultiply, EqualsTheFormulaOverEveryTail) {
  for (std::int64_t n : {0, 1, 3, 4, 7, 8, 15, 16, 17, 33, 1000, 100'003}) {
    const auto gate = normal_numbers(n, 1, 6.f), up = normal_numbers(n, 2);
    std::vector<float> out(gate.size());
    silu_multiply(gate.data(), up.data(), out.data(), n);
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double g = gate[i], want = g / (1 + std::exp(-g)) * up[i];
      EXPECT_NEAR(out[i], want, 1e-6 * std::abs(want) + 1e-30) << i;
    }
  }
}

TEST_P(SiluMultiply, WritesOverItsInputs) {
  const auto gate = normal_numbers(37, 1), up = normal_numbers(37, 2);
  std::vector<float> out(37), over_gate = gate, over_up = up;
  silu_multiply(gate.data(), up.data(), out.data(), 37);
  silu_multiply(over_gate.data(), up.data(), over_gate.data(), 37);
  silu_multiply(gate.data(), over_up.data(), over_up.data(), 37);
  EXPECT_EQ(over_gate, out);
  EXPECT_EQ(over_up, out);
}

TEST_P(SiluMultiply, HasItsLimits) {
  const std::vector<float> gate{-1e30f, -200.f, 0.f, 200.f, kInfinity, kNan},
      up(gate.size(), 2.f);
  std::vector<float> out(gate.size());
  silu_multiply(gate.data(), up.data(), out.data(), static_cast<std::int64_t>(gate.size()));
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(out[i], 0.f) << gate[i];
  EXPECT_FLOAT_EQ(out[3], 400.f);
  EXPECT_EQ(out[4], kInfinity);
  EXPECT_TRUE(std::isnan(out[5]));
}

TEST_P(SiluMultiply, RefusesANegativeLength) {
  EXPECT_THROW(silu_multiply(nullptr, nullptr, nullptr, -1), Error);
}

MNEME_AT_EVERY_LEVEL(SiluMultiply);

}  // namespace
}  // namespace mneme::kernels
