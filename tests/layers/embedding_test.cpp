#include "mneme/layers/embedding.h"

#include "mneme/layers/activation.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "../stored_weights.h"
#include <gtest/gtest.h>

namespace mneme {
namespace {

TEST(EmbeddingTable, TakesRowsOfAStoredTable) {
  for (const auto type : kWeightTypes) {
    const auto weight = check::random_weight(type, 9, 64, 1);
    Params params;
    params.set("e.weight", parameter_from(weight));
    const EmbeddingTable table(params, "e", 9, 64);
    const auto ids = at::tensor({3, 0, 8, 3, 1, 1}, at::kLong).view({2, 3});
    EXPECT_TRUE(check::identical(
        table(ids), dequantize(weight).index_select(0, ids.flatten()).view({2, 3, 64})))
        << name(type);
  }
}

TEST(EmbeddingTable, ManyRowsOnManyThreads) {
  const auto weight = check::random_weight(WeightType::f16, 50, 24, 1);
  Params params;
  params.set("e.weight", parameter_from(weight));
  const EmbeddingTable table(params, "e", 50, 24);
  const auto ids = check::random_ids(1, 301, 50, 2);
  at::set_num_threads(3);
  const auto rows = table(ids);
  at::set_num_threads(1);
  EXPECT_TRUE(check::identical(rows[0], dequantize(weight).index_select(0, ids[0])));
}

TEST(EmbeddingTable, AFreshTableTrains) {
  Params params;
  const EmbeddingTable table(params, "e", 5, 4);
  params.requires_grad(true);
  (table(at::tensor({2, 2, 0}, at::kLong).view({1, 3}))).sum().backward();
  const auto gradient = params.find("e.weight")->tensor.grad();
  EXPECT_TRUE(check::identical(gradient.sum(1), at::tensor({4.f, 0.f, 8.f, 0.f, 0.f})));
}

TEST(EmbeddingTable, RefusesIdsOutside) {
  Params params;
  const EmbeddingTable table(params, "e", 5, 4);
  check::expect_error(Errc::invalid, "token id 5",
                      [&] { (void)table(at::tensor({0, 5}, at::kLong).view({1, 2})); });
  check::expect_error(Errc::invalid, "token id -1",
                      [&] { (void)table(at::tensor({-1}, at::kLong).view({1, 1})); });
}

TEST(Activation, EqualsItsFormula) {
  const auto x = at::linspace(-4, 4, 41, at::kDouble);
  const auto phi = 0.5 * (1 + at::erf(x / std::sqrt(2.0)));
  EXPECT_TRUE(check::close(activate("silu", x.clone()), x / (1 + at::exp(-x)), 1e-12));
  EXPECT_TRUE(check::close(activate("gelu", x.clone()), x * phi, 1e-12));
  EXPECT_TRUE(check::close(
      activate("gelu_tanh", x.clone()),
      0.5 * x * (1 + at::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x.pow(3)))), 1e-10));
  EXPECT_TRUE(check::close(activate("relu", x.clone()), x.clamp_min(0), 1e-12));
}

TEST(Activation, KeepsWhatAGradientNeeds) {
  for (const auto& name : activation_names()) {
    auto x = check::normal({7}, 1).set_requires_grad(true);
    const auto before = x.detach().clone();
    activate(name, x).sum().backward();
    EXPECT_TRUE(check::identical(x.detach(), before)) << name;
    EXPECT_TRUE(x.grad().defined());
  }
  check::expect_error(Errc::usage, "did you mean 'silu'",
                      [] { (void)activate("sliu", at::zeros({1})); });
}

}  // namespace
}  // namespace mneme
