#include "mneme/layers/norm.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include "../contracts/gradcheck.h"
#include <cmath>
#include <gtest/gtest.h>

namespace mneme {
namespace {

class NormTest : public ::testing::TestWithParam<std::int64_t> {};

TEST_P(NormTest, RmsEqualsItsFormula) {
  const auto D = GetParam();
  Params params;
  const RMSNorm norm(params, "n", D, 1e-5);
  params.find("n.weight")->tensor.copy_(check::normal({D}, 1));
  const auto x = 3 * check::normal({2, 3, D}, 2);
  const auto y = norm(x);
  const auto* w = params.find("n.weight")->tensor.const_data_ptr<float>();
  for (std::int64_t r = 0; r < 6; ++r) {
    const auto* in = x.const_data_ptr<float>() + r * D;
    double sum = 0;
    for (std::int64_t i = 0; i < D; ++i) sum += static_cast<double>(in[i]) * in[i];
    for (std::int64_t i = 0; i < D; ++i) {
      EXPECT_NEAR(y.const_data_ptr<float>()[r * D + i],
                  in[i] / std::sqrt(sum / static_cast<double>(D) + 1e-5) * w[i], 1e-5);
    }
  }
  const auto tracked = x.clone().set_requires_grad(true);
  EXPECT_TRUE(check::close(norm(tracked).detach(), y, 1e-6)) << "the differentiable form";
  EXPECT_TRUE(check::close(norm(10 * x), y, 1e-4)) << "the length of the input is gone";
}

TEST_P(NormTest, AddsAndNormalizesInOnePass) {
  const auto D = GetParam();
  Params params;
  const RMSNorm norm(params, "n", D, 1e-5);
  params.find("n.weight")->tensor.copy_(check::normal({D}, 1));
  const auto x = check::normal({2, 3, D}, 2), addend = check::normal({2, 3, D}, 3);
  const auto want = norm(x + addend);
  auto kept = x, written = x.clone();
  const auto* memory = written.const_data_ptr<float>();
  EXPECT_TRUE(check::close(norm.after_adding(kept, addend, false), want, 1e-6));
  EXPECT_TRUE(check::close(norm.after_adding(written, addend, true), want, 1e-6));
  EXPECT_TRUE(check::close(kept, x + addend, 1e-6));
  EXPECT_TRUE(check::close(written, x + addend, 1e-6));
  EXPECT_EQ(written.const_data_ptr<float>(), memory);
  EXPECT_NE(kept.const_data_ptr<float>(), x.const_data_ptr<float>()) << "the caller's stays";
  auto old = at::empty_like(x), held = at::empty_like(x);
  const auto* of_old = old.const_data_ptr<float>();
  auto into_old = x.clone(), into_held = x.clone(), into_view = x.clone();
  const auto reused = norm.after_adding(into_old, addend, true, std::move(old));
  EXPECT_EQ(reused.const_data_ptr<float>(), of_old);
  EXPECT_TRUE(check::close(reused, want, 1e-6));
  held.zero_();
  EXPECT_NE(norm.after_adding(into_held, addend, true, held).const_data_ptr<float>(),
            held.const_data_ptr<float>())
      << "somebody else holds it";
  EXPECT_NE(norm.after_adding(into_view, addend, true, held.view_as(x)).const_data_ptr<float>(),
            held.const_data_ptr<float>());
  EXPECT_TRUE(at::equal(held, at::zeros_like(held)));
  auto tracked = x.clone().set_requires_grad(true);
  auto sum = tracked;
  norm.after_adding(sum, addend, true).sum().backward();
  EXPECT_TRUE(tracked.grad().defined()) << "no shortcut where gradients are recorded";
}

TEST_P(NormTest, LayerNormEqualsItsFormula) {
  const auto D = GetParam();
  Params params;
  const LayerNorm norm(params, "n", D, 1e-6);
  auto &w = params.find("n.weight")->tensor, &b = params.find("n.bias")->tensor;
  w.copy_(check::normal({D}, 1));
  b.copy_(check::normal({D}, 3));
  const auto x = 3 * check::normal({4, D}, 2) + 5;
  const auto y = norm(x);
  for (std::int64_t r = 0; r < 4; ++r) {
    double mean = 0, variance = 0;
    for (std::int64_t i = 0; i < D; ++i) mean += x[r][i].item<double>() / static_cast<double>(D);
    for (std::int64_t i = 0; i < D; ++i)
      variance += std::pow(x[r][i].item<double>() - mean, 2) / static_cast<double>(D);
    for (std::int64_t i = 0; i < D; ++i) {
      EXPECT_NEAR(
          y[r][i].item<double>(),
          (x[r][i].item<double>() - mean) / std::sqrt(variance + 1e-6) * w[i].item<double>() +
              b[i].item<double>(),
          2e-4);
    }
  }
}

TEST_P(NormTest, TheNormOfASumEqualsAddingFirst) {
  const auto D = GetParam();
  Params params;
  const LayerNorm norm(params, "n", D, 1e-6);
  params.find("n.weight")->tensor.copy_(check::normal({D}, 1));
  params.find("n.bias")->tensor.copy_(check::normal({D}, 3));
  const auto x = check::normal({2, 5, D}, 2), addend = check::normal({2, 5, D}, 4);
  const auto want = norm((x + addend).to(at::kDouble));
  const auto kept = x.clone();
  EXPECT_TRUE(check::close(norm.of_sum(x, addend), want, 1e-5));
  EXPECT_TRUE(check::identical(x, kept)) << "x stays";
  const auto strided = x.transpose(0, 1).contiguous().transpose(0, 1);
  EXPECT_TRUE(check::close(norm.of_sum(strided, addend), want, 1e-5));
  EXPECT_TRUE(check::close(norm.of_sum(x, addend.narrow(0, 0, 1)),
                           norm((x + addend.narrow(0, 0, 1)).to(at::kDouble)), 1e-5))
      << "broadcast";
  const auto a = x.clone().set_requires_grad(true), b = addend.clone().set_requires_grad(true);
  const auto y = norm.of_sum(a, b);
  EXPECT_TRUE(check::close(y.detach(), want, 1e-5)) << "the differentiable form";
  y.backward(check::normal(y.sizes(), 6));
  EXPECT_TRUE(check::identical(a.grad(), b.grad()));
  EXPECT_GT(a.grad().abs().max().item<float>(), 0.f);
}

TEST_P(NormTest, ManyRowsOnManyThreadsAreTheSame) {
  const auto D = GetParam();
  Params params;
  const RMSNorm rms(params, "r", D, 1e-5);
  const LayerNorm layer(params, "l", D, 1e-5);
  const auto rows = 40 * 1024 / D;
  const auto x = check::normal({rows, D}, 2), addend = check::normal({rows, D}, 3);
  const auto rms_alone = rms(x), layer_alone = layer.of_sum(x, addend);
  at::set_num_threads(3);
  const auto rms_shared = rms(x), layer_shared = layer.of_sum(x, addend);
  at::set_num_threads(1);
  EXPECT_TRUE(check::identical(rms_shared, rms_alone));
  EXPECT_TRUE(check::identical(layer_shared, layer_alone));
}

TEST_P(NormTest, Gradients) {
  const auto D = GetParam();
  Params params;
  const RMSNorm rms(params, "r", D, 1e-5);
  const LayerNorm layer(params, "l", D, 1e-5);
  const auto x = check::normal({2, 3, D}, 2, at::kDouble);
  check::Leaves leaves{{"x", x}};
  for (const auto& name : params.names()) {
    auto& weight = params.find(name)->tensor;
    weight = check::normal(weight.sizes(), 5, at::kDouble);
    leaves.emplace_back(name, weight);
  }
  EXPECT_TRUE(check::gradients_match([&] { return rms(x) + layer(x); }, leaves));
}

TEST_P(NormTest, ARowOfZerosStaysFinite) {
  Params params;
  const RMSNorm norm(params, "n", GetParam(), 1e-5);
  EXPECT_EQ(norm(at::zeros({1, GetParam()})).abs().max().item<float>(), 0.f);
}

INSTANTIATE_TEST_SUITE_P(Widths, NormTest, ::testing::Values(2, 7, 16, 33));

}  // namespace
}  // namespace mneme
