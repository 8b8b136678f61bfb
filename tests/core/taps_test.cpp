#include "mneme/core/taps.h"

#include <ATen/ATen.h>

#include <gtest/gtest.h>

namespace mneme {
namespace {

at::Tensor same(std::string_view, const at::Tensor& x) { return x; }

Taps armed_at(const std::string& glob) {
  Taps taps;
  taps.add(glob, same);
  return taps;
}

TEST(Taps, ArmOnlyTheLayersThatTheyName) {
  const auto one = armed_at("layers.10.mlp.act");
  EXPECT_TRUE(one.armed("layers.10"));
  EXPECT_FALSE(one.armed("layers.1"));
  EXPECT_FALSE(one.armed("layers.100"));
  EXPECT_TRUE(armed_at("*.attn.q|*.attn.k").armed("layers.3"));
  EXPECT_FALSE(armed_at("layers.10.mlp.gate").armed("layers.10")) << "no point has this name";
  EXPECT_FALSE(Taps().armed("layers.10"));
}

TEST(Taps, EveryPointOfTheDesignCanBeArmed) {
  for (const auto* point : {"resid.pre", "attn.q", "attn.k", "attn.v", "attn.heads", "attn.out",
                            "mlp.act", "resid.post", "state"}) {
    EXPECT_TRUE(armed_at(std::string("layers.0.") + point).armed("layers.0")) << point;
  }
}

TEST(Taps, SeeAndReplaceInOrder) {
  Taps taps;
  std::vector<std::string> seen;
  taps.add("*.mlp.act", [&](std::string_view name, const at::Tensor& x) {
    seen.emplace_back(name);
    return x + 1;
  });
  taps.add("layers.2.*", [](std::string_view, const at::Tensor& x) { return x * 10; });
  Call call;
  call.at = "layers.2";
  const auto x = at::full({2}, 3.0);
  EXPECT_TRUE(at::equal(tap(call, "mlp.act", x), x)) << "no taps, no change";
  EXPECT_FALSE(tapped(call));
  call.taps = &taps;
  EXPECT_TRUE(tapped(call));
  EXPECT_TRUE(at::equal(tap(call, "mlp.act", x), at::full({2}, 40.0)));
  EXPECT_TRUE(at::equal(tap(call, "resid.pre", x), at::full({2}, 30.0)));
  call.at = "layers.3";
  EXPECT_TRUE(at::equal(tap(call, "resid.pre", x), x));
  EXPECT_EQ(seen, (std::vector<std::string>{"layers.2.mlp.act"}));
}

}  // namespace
}  // namespace mneme
