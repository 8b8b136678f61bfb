// What every feed-forward of the registry must do.
#include "mneme/core/registry.h"
#include "mneme/core/taps.h"
#include "mneme/layers/feed_forward.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "gradcheck.h"
#include <gtest/gtest.h>

namespace mneme {
namespace {

constexpr std::int64_t kModel = 12;

/// Every enrolled feed-forward at its defaults, and further forms of those that have several.
std::vector<std::string> feed_forward_specs() {
  auto out = registry().names(FeedForward::kKind);
  const std::vector<std::string> more{
      "glu(hidden=7, activation=gelu)", "glu(hidden=7, activation=relu)",
      "mlp(hidden=7, activation=gelu_tanh)", "mlp(hidden=7, activation=silu)"};
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

class FeedForwardContract : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    params_.seed(3);
    layer_ = registry().make<FeedForward>(GetParam(), Shape{kModel, 0}, params_);
    for (const auto& name : params_.names()) {
      auto& tensor = params_.find(name)->tensor;
      tensor = tensor.to(at::kDouble);
      if (name.ends_with(".bias"))
        tensor.copy_(0.3 * check::normal(tensor.sizes(), 5, at::kDouble));
    }
  }
  [[nodiscard]] at::Tensor run(const at::Tensor& x) const {
    Call call;
    call.positions = check::positions(x.size(0), x.size(1));
    call.compute = Compute::f32;
    return layer_->forward(x, call);
  }
  const at::NoGradGuard no_gradient_;
  Params params_;
  std::unique_ptr<FeedForward> layer_;
};

TEST_P(FeedForwardContract, EveryTokenIsApart) {
  const auto x = check::normal({2, 9, kModel}, 1, at::kDouble), copy = x.clone();
  const auto whole = run(x);
  ASSERT_EQ(whole.sizes(), x.sizes());
  EXPECT_TRUE(check::identical(x, copy)) << "the input is left alone";
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t t = 0; t < 9; ++t) {
      EXPECT_TRUE(check::close(run(x.narrow(0, b, 1).narrow(1, t, 1)),
                               whole.narrow(0, b, 1).narrow(1, t, 1), 1e-10));
    }
  }
}

TEST_P(FeedForwardContract, TheSameInSinglePrecision) {
  const auto x = check::normal({1, 5, kModel}, 1, at::kDouble);
  const auto want = run(x);
  for (const auto& name : params_.names())
    params_.find(name)->tensor = params_.find(name)->tensor.to(at::kFloat);
  EXPECT_TRUE(check::close(run(x.to(at::kFloat)), want, 1e-5));
}

TEST_P(FeedForwardContract, Gradients) {
  const auto x = check::normal({2, 3, kModel}, 2, at::kDouble);
  check::Leaves leaves{{"x", x}};
  for (const auto& name : params_.names()) leaves.emplace_back(name, params_.find(name)->tensor);
  EXPECT_TRUE(check::gradients_match([&] { return run(x); }, leaves));
}

TEST_P(FeedForwardContract, ItsMiddlePassesTheTap) {
  const auto x = check::normal({2, 3, kModel}, 2, at::kDouble);
  const auto plain = run(x);
  Call call;
  call.positions = check::positions(2, 3);
  call.compute = Compute::f32;
  call.at = "layers.4";
  std::int64_t visits = 0;
  Taps watching, silencing;
  watching.add("layers.4.mlp.act", [&](std::string_view, const at::Tensor& value) {
    ++visits;
    EXPECT_EQ(value.size(0) * value.size(1), 6);
    return value;
  });
  call.taps = &watching;
  EXPECT_TRUE(check::close(layer_->forward(x, call), plain, 1e-10));
  EXPECT_EQ(visits, 1);
  silencing.add("layers.*.mlp.act",
                [](std::string_view, const at::Tensor& value) { return at::zeros_like(value); });
  call.taps = &silencing;
  EXPECT_FALSE(check::close(layer_->forward(x, call), plain, 1e-3)) << "what a tap returns is used";
}

TEST_P(FeedForwardContract, ItsSpecPrintsAndParsesBack) {
  const auto stage = parse_stage(GetParam());
  const auto& component = registry().find(FeedForward::kKind, stage.name);
  const auto text = print(component.canonicalize(stage));
  EXPECT_EQ(print(component.canonicalize(parse_stage(text))), text);
}

INSTANTIATE_TEST_SUITE_P(EveryFeedForward, FeedForwardContract,
                         ::testing::ValuesIn(feed_forward_specs()),
                         [](const auto& info) { return check::test_name(info.param); });

}  // namespace
}  // namespace mneme
