#include "mneme/layers/reshape.h"

#include <ATen/ATen.h>

#include <gtest/gtest.h>

namespace mneme {
namespace {

TEST(Reshaped, KeepsTheNumbersAndTheirPlace) {
  auto x = at::arange(24, at::kFloat);
  const auto* numbers = x.const_data_ptr<float>();
  const auto y = reshaped(std::move(x), {2, 3, 1, 4});
  EXPECT_EQ(y.sizes(), at::IntArrayRef({2, 3, 1, 4}));
  EXPECT_EQ(y.const_data_ptr<float>(), numbers);
  EXPECT_TRUE(at::equal(y.flatten(), at::arange(24, at::kFloat)));
}

TEST(Reshaped, LeavesATensorThatSomebodyElseHolds) {
  const auto x = at::arange(6, at::kFloat);
  const auto y = reshaped(x, {2, 3});
  EXPECT_EQ(x.sizes(), at::IntArrayRef({6}));
  EXPECT_EQ(y.sizes(), at::IntArrayRef({2, 3}));
}

TEST(Reshaped, CopiesWhatLiesInAnotherOrder) {
  const auto x = at::arange(6, at::kFloat).view({2, 3});
  EXPECT_TRUE(at::equal(reshaped(x.t(), {6}), at::tensor({0.f, 3.f, 1.f, 4.f, 2.f, 5.f})));
}

TEST(Reshaped, PassesGradientsOn) {
  auto x = at::ones({4}).set_requires_grad(true);
  auto y = reshaped(x * 2, {2, 2});
  y.sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), at::full({4}, 2.f)));
}

TEST(Reshaped, RefusesAnotherNumberOfThem) {
  EXPECT_THROW(reshaped(at::ones({4}), {3}), c10::Error);
}

}  // namespace
}  // namespace mneme
