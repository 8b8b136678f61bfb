#include "mneme/train/optimizer.h"

#include "mneme/core/registry.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/optim/adamw.h>

#include "../tensor_check.h"
#include <fmt/format.h>
#include <gtest/gtest.h>

namespace mneme {
namespace {

Params weights(const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
  Params out;
  for (const auto& [name, tensor] : tensors) {
    Parameter parameter;
    parameter.tensor = tensor.clone();
    out.set(name, std::move(parameter));
  }
  out.requires_grad(true);
  return out;
}

void set_gradient(const Params& params, const std::string& name, const at::Tensor& gradient) {
  params.find(name)->tensor.mutable_grad() = gradient.clone();
}

TEST(AdamW, WorkedByHand) {
  auto params = weights({{"w", at::ones({1})}});
  const auto adamw =
      registry().make<Optimizer>("adamw(lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.1)", params);
  EXPECT_EQ(adamw->rate(), 0.1);
  // m = 0.05, v = 0.0025: the step is lr m^ / sqrt(v^) = 0.1 x 0.5 / 0.5.
  set_gradient(params, "w", at::full({1}, 0.5));
  adamw->step(0.1);
  EXPECT_NEAR(params.find("w")->tensor.item<double>(), 1 * 0.99 - 0.1, 1e-6);
  // m = 0.9 x 0.05 - 0.1 = -0.055, over 1 - 0.81; v = 0.99 x 0.0025 + 0.01 = 0.012475, over 1 - 0.9801.
  set_gradient(params, "w", at::full({1}, -1.0));
  adamw->step(0.1);
  EXPECT_NEAR(params.find("w")->tensor.item<double>(), 0.89 * 0.99 + 0.1 * 0.2894737 / 0.7917603,
              1e-6);
}

TEST(AdamW, TakesTheStepsOfTorch) {
  for (const double decay : {0.0, 0.05}) {
    const auto a = check::normal({7, 5}, 1), b = check::normal({11}, 2);
    auto params = weights({{"a", a}, {"b", b}});
    const auto ours = registry().make<Optimizer>(
        fmt::format("adamw(beta2=0.999, eps=1e-6, weight_decay={})", decay), params);
    std::vector<at::Tensor> theirs{a.clone().set_requires_grad(true),
                                   b.clone().set_requires_grad(true)};
    torch::optim::AdamW reference(
        theirs, torch::optim::AdamWOptions(0.01).betas({0.9, 0.999}).eps(1e-6).weight_decay(decay));
    for (int step = 0; step < 20; ++step) {
      const auto rate = 0.01 / (1 + step);
      static_cast<torch::optim::AdamWOptions&>(reference.param_groups().front().options()).lr(rate);
      const auto scale = std::pow(10.0, step % 5 - 2);
      const auto ga = scale * check::normal({7, 5}, 10 + step),
                 gb = scale * check::normal({11}, 50 + step);
      set_gradient(params, "a", ga);
      set_gradient(params, "b", gb);
      theirs[0].mutable_grad() = ga.clone();
      theirs[1].mutable_grad() = gb.clone();
      ours->step(rate);
      reference.step();
      EXPECT_LE(check::largest_difference(params.find("a")->tensor.detach(), theirs[0].detach()),
                1e-6)
          << step;
      EXPECT_LE(check::largest_difference(params.find("b")->tensor.detach(), theirs[1].detach()),
                1e-6)
          << step;
    }
  }
}

TEST(AdamW, GoesOnFromItsStateExactly) {
  const auto start = check::normal({6}, 1);
  auto whole = weights({{"w", start}});
  const auto straight = registry().make<Optimizer>("adamw", whole);
  const auto feed = [](Params& params, Optimizer& optimizer, int from, int to) {
    for (int step = from; step < to; ++step) {
      set_gradient(params, "w", check::normal({6}, 100 + static_cast<std::uint64_t>(step)));
      optimizer.step(0.01);
    }
  };
  feed(whole, *straight, 0, 9);
  auto first = weights({{"w", start}});
  const auto before = registry().make<Optimizer>("adamw", first);
  feed(first, *before, 0, 4);
  auto second = weights({{"w", first.find("w")->tensor.detach()}});
  const auto after = registry().make<Optimizer>("adamw", second);
  after->load(before->state());
  feed(first, *before, 4, 5);  // what was loaded is a copy
  feed(second, *after, 4, 9);
  EXPECT_TRUE(check::identical(second.find("w")->tensor, whole.find("w")->tensor));
}

TEST(AdamW, LeavesAloneWhatHasNoGradient) {
  auto params = weights(
      {{"learned", at::ones({2})}, {"not asked", at::ones({2})}, {"frozen", at::ones({2})}});
  params.find("frozen")->frozen = true;
  params.requires_grad(true);
  const auto adamw = registry().make<Optimizer>("adamw(weight_decay=0.5)", params);
  set_gradient(params, "learned", at::ones({2}));
  adamw->step(0.1);
  EXPECT_LT(params.find("learned")->tensor[0].item<double>(), 1);
  EXPECT_EQ(params.find("not asked")->tensor[0].item<double>(), 1);
  EXPECT_EQ(params.find("frozen")->tensor[0].item<double>(), 1);
  EXPECT_EQ(adamw->state().count("frozen.mean"), 0u);
}

TEST(AdamW, RefusesTheStateOfOthers) {
  const auto optimizer = [](Params params) { return registry().make<Optimizer>("adamw", params); };
  const auto of_two = optimizer(weights({{"a", at::ones({2})}, {"b", at::ones({3})}}));
  const auto of_one = optimizer(weights({{"a", at::ones({2})}}));
  const auto of_longer = optimizer(weights({{"a", at::ones({3})}}));
  check::expect_error(Errc::mismatch, "other weights", [&] { of_one->load(of_two->state()); });
  check::expect_error(Errc::mismatch, "b.mean", [&] { of_two->load(of_one->state()); });
  check::expect_error(Errc::mismatch, "a.mean", [&] { of_one->load(of_longer->state()); });
  check::expect_error(Errc::usage, "lr",
                      [&] { (void)registry().make<Optimizer>("adamw(lr=0)", Params()); });
}

}  // namespace
}  // namespace mneme
