// Gradients against central differences in float64; libtorch's C++ side has no gradcheck.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "../tensor_check.h"
#include <algorithm>
#include <functional>
#include <gtest/gtest.h>
#include <string>
#include <utility>
#include <vector>

namespace mneme::check {

/// Named leaves in double, which `f` reads.
using Leaves = std::vector<std::pair<std::string, at::Tensor>>;

/// The gradient of the sum of f() weighted by fixed random numbers, for each leaf, must equal
/// (f(x + h) - f(x - h)) / 2h in up to `most` coordinates of the leaf. Where the leaf does not matter
/// both are zero.
inline ::testing::AssertionResult gradients_match(const std::function<at::Tensor()>& f,
                                                  const Leaves& leaves, std::int64_t most = 24,
                                                  double h = 1e-5, double tolerance = 1e-6) {
  for (const auto& [name, leaf] : leaves) {
    if (leaf.scalar_type() != at::kDouble) {
      return ::testing::AssertionFailure() << name << " is not in double";
    }
    leaf.mutable_grad() = at::Tensor();
    leaf.requires_grad_(true);
  }
  at::Tensor weights;
  const auto loss = [&] {
    const auto y = f();
    if (!weights.defined()) weights = normal(y.sizes(), 99, at::kDouble);
    return (y * weights).sum();
  };
  {
    const at::AutoGradMode on(true);
    loss().backward();
  }
  for (const auto& [name, leaf] : leaves) {
    const auto gradient =
        leaf.grad().defined() ? leaf.grad().contiguous() : at::zeros_like(leaf).contiguous();
    Generator generator(7);
    const auto n = leaf.numel();
    for (std::int64_t k = 0; k < std::min(n, most); ++k) {
      const auto i = n <= most ? k : static_cast<std::int64_t>(generator.next() % n);
      const at::NoGradGuard no_gradient;
      auto& x = leaf.mutable_data_ptr<double>()[i];
      const auto before = x;
      x = before + h;
      const auto above = loss().item<double>();
      x = before - h;
      const auto below = loss().item<double>();
      x = before;
      const auto numeric = (above - below) / (2 * h), ours = gradient.data_ptr<double>()[i];
      if (!(std::abs(numeric - ours) <= tolerance * (1 + std::abs(numeric)))) {
        return ::testing::AssertionFailure()
               << "d/d " << name << "[" << i << "] is " << ours << ", differences say " << numeric;
      }
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace mneme::check
