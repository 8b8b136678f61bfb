#include "mneme/core/params.h"

#include "mneme/core/error.h"

#include <ATen/ATen.h>

#include <cmath>
#include <gtest/gtest.h>

namespace mneme {
namespace {

class Nothing final : public Adapter {
 public:
  [[nodiscard]] at::Tensor apply(const at::Tensor&, const at::Tensor& y) const override {
    return y;
  }
};

/// A weight that only knows its sizes.
class Kept final : public StoredWeight {
 public:
  [[nodiscard]] std::vector<std::int64_t> sizes() const override { return {3, 32}; }
  [[nodiscard]] std::int64_t bytes() const override { return 60; }
  [[nodiscard]] std::string type() const override { return "Q4_1"; }
  [[nodiscard]] at::Tensor rows(std::int64_t begin, std::int64_t end,
                                at::ScalarType dtype) const override {
    return at::zeros({end - begin, 32}, dtype);
  }
};

Parameter holding(at::Tensor tensor) {
  Parameter p;
  p.tensor = std::move(tensor);
  return p;
}
Parameter kept() {
  Parameter p;
  p.stored = std::make_shared<Kept>();
  return p;
}

TEST(Params, FreshWeightsDoNotDependOnTheOrderOfAsking) {
  Params a, b;
  a.seed(9);
  b.seed(9);
  const auto a1 = a.scope("layers.0").weight("q", {4, 8})->tensor,
             a2 = a.scope("layers.1").weight("q", {4, 8})->tensor;
  (void)b.weight("something.else", {5});
  const auto b2 = b.scope("layers").scope("1").weight("q", {4, 8})->tensor,
             b1 = b.weight("layers.0.q", {4, 8})->tensor;
  EXPECT_TRUE(at::equal(a1, b1));
  EXPECT_TRUE(at::equal(a2, b2));
  EXPECT_FALSE(at::equal(a1, a2)) << "names differ, weights differ";
  Params c;
  c.seed(10);
  EXPECT_FALSE(at::equal(c.weight("layers.0.q", {4, 8})->tensor, a1))
      << "seeds differ, weights differ";
}

TEST(Params, InitsAreWhatTheySay) {
  Params p;
  EXPECT_TRUE(at::equal(p.weight("zeros", {3}, Init::zeros)->tensor, at::zeros({3})));
  EXPECT_TRUE(at::equal(p.weight("ones", {3}, Init::ones)->tensor, at::ones({3})));
  const auto uniform = p.weight("uniform", {200, 100})->tensor;
  EXPECT_LE(uniform.abs().max().item<double>(), 0.1);
  EXPECT_GT(uniform.abs().max().item<double>(), 0.0999);
  EXPECT_NEAR(uniform.mean().item<double>(), 0, 0.002);
  const auto normal = p.weight("normal", {200, 100}, Init::normal_002)->tensor;
  EXPECT_NEAR(normal.std().item<double>(), 0.02, 0.0005);
  EXPECT_EQ(p.weight("scalar", {})->tensor.dim(), 0);
}

TEST(Params, OneNameIsOneWeight) {
  Params p;
  const auto first = p.scope("a").weight("w", {2, 3});
  EXPECT_EQ(p.weight("a.w", {2, 3}), first);
  try {
    (void)p.scope("a").weight("w", {3, 2});
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Errc::mismatch);
    EXPECT_STREQ(e.what(), "weight 'a.w' has the sizes [2, 3], the model wants [3, 2]");
  }
  EXPECT_EQ(p.find("nothing"), nullptr);
  EXPECT_FALSE(p.scope("a").has("a.w")) << "a scope sees only names under it";
}

TEST(Params, ScopesAreViewsOfOneSet) {
  Params p;
  auto layer = p.scope("layers.1");
  p.set("layers.1.w", holding(at::full({2}, 5.0)));
  p.set("layers.10.w", holding(at::full({2}, 6.0)));
  EXPECT_EQ(layer.weight("w", {2})->tensor[0].item<double>(), 5.0)
      << "a loaded weight is not made anew";
  EXPECT_EQ(layer.names(), (std::vector<std::string>{"w"})) << "layers.10 is not under layers.1";
  EXPECT_EQ(p.names("layers.*.w"), (std::vector<std::string>{"layers.1.w", "layers.10.w"}));
  EXPECT_EQ(p.names("*.b"), std::vector<std::string>{});
}

TEST(Params, AttachesAdaptersByGlob) {
  Params p;
  for (const auto* name : {"l.0.q", "l.0.k", "l.1.q"}) (void)p.weight(name, {2, 2});
  EXPECT_EQ(p.attach("*.q", std::make_shared<Nothing>()), 2);
  EXPECT_EQ(p.find("l.1.q")->adapters.size(), 1u);
  EXPECT_EQ(p.find("l.0.k")->adapters.size(), 0u);
  EXPECT_EQ(p.scope("l.0").attach("q|k", std::make_shared<Nothing>()), 2);
  EXPECT_EQ(p.find("l.0.q")->adapters.size(), 2u);
}

TEST(Params, CountsDistinctNumbers) {
  Params p;
  (void)p.weight("embedding", {10, 4});
  auto output = holding(p.find("embedding")->tensor);
  output.tied_to = "embedding";
  p.set("output", output);
  p.set("kept", kept());
  EXPECT_EQ(p.count(), 40 + 96);
  EXPECT_EQ(p.find("kept")->sizes(), (std::vector<std::int64_t>{3, 32}));
  EXPECT_NO_THROW((void)p.weight("kept", {3, 32}));
}

TEST(Params, OnlyWhatTrainsRequiresGradients) {
  Params p;
  (void)p.weight("w", {2});
  auto frozen = holding(at::ones({2}));
  frozen.frozen = true;
  p.set("frozen", frozen);
  p.set("ids", holding(at::ones({2}, at::kLong)));
  p.set("kept", kept());
  p.requires_grad(true);
  EXPECT_TRUE(p.find("w")->tensor.requires_grad());
  EXPECT_FALSE(p.find("frozen")->tensor.requires_grad());
  EXPECT_FALSE(p.find("ids")->tensor.requires_grad());
  p.requires_grad(false);
  EXPECT_FALSE(p.find("w")->tensor.requires_grad());
}

}  // namespace
}  // namespace mneme
