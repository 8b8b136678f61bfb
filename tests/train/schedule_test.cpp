#include "mneme/train/schedule.h"

#include "mneme/core/registry.h"

#include "../tensor_check.h"
#include <gtest/gtest.h>

namespace mneme {
namespace {

double at_step(const std::string& spec, std::int64_t step, std::int64_t steps) {
  return registry().make<Schedule>(spec)->factor(
      step, static_cast<double>(step) / static_cast<double>(steps));
}

TEST(Schedule, Constant) {
  EXPECT_EQ(at_step("constant", 0, 10), 1);
  EXPECT_EQ(at_step("constant", 9, 10), 1);
  EXPECT_EQ(at_step("constant(warmup=4)", 0, 10), 0.25);
  EXPECT_EQ(at_step("constant(warmup=4)", 3, 10), 1);
}

TEST(Schedule, Linear) {
  EXPECT_EQ(at_step("linear(warmup=0)", 0, 10), 1);
  EXPECT_DOUBLE_EQ(at_step("linear(warmup=0)", 5, 10), 0.5);
  EXPECT_DOUBLE_EQ(at_step("linear(warmup=0, floor=0.2)", 5, 10), 0.6);
  EXPECT_DOUBLE_EQ(at_step("linear(warmup=10)", 4, 100), 0.5 * 0.96);
}

TEST(Schedule, Cosine) {
  EXPECT_EQ(at_step("cosine(warmup=0)", 0, 10), 1);
  EXPECT_NEAR(at_step("cosine(warmup=0)", 5, 10), 0.5, 1e-12);
  EXPECT_NEAR(at_step("cosine(warmup=0, floor=0.1)", 5, 10), 0.55, 1e-12);
  EXPECT_NEAR(at_step("cosine(warmup=0)", 1, 3), 0.75, 1e-12);
  EXPECT_NEAR(at_step("cosine(warmup=10)", 0, 1000), 0.1, 1e-6);
}

TEST(Schedule, NeverLeavesZeroToOne) {
  for (const auto& name : registry().names(Schedule::kKind)) {
    for (std::int64_t step = 0; step < 60; ++step) {
      const auto factor = at_step(name, step, 60);
      EXPECT_GT(factor, 0) << name << " " << step;
      EXPECT_LE(factor, 1) << name << " " << step;
    }
  }
}

}  // namespace
}  // namespace mneme
