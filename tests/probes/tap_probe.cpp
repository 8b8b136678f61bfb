// Probe: patching `mlp.act` in layer 10 of the default model while it runs.
#include "mneme/core/taps.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "../smollm2.h"
#include "../tensor_check.h"
#include <gtest/gtest.h>

namespace mneme {
namespace {

class TapProbe : public ::testing::Test {
 protected:
  void SetUp() override {
    MNEME_NEEDS_SMOLLM2();
    const auto ids = check::smollm2()->tokenizer->encode(check::kProse);
    ids_ = at::empty({1, 24}, at::kLong);
    for (std::int64_t t = 0; t < 24; ++t) ids_[0][t] = ids[static_cast<std::size_t>(t)];
  }
  [[nodiscard]] Output run(const Taps* taps, std::int64_t to_layer = -1,
                           Compute compute = Compute::f32) const {
    const auto& model = *check::smollm2(compute)->model;
    auto state = model.start(1);
    Batch batch;
    batch.ids = ids_;
    batch.logits_at = LogitsAt::all;
    batch.compute = compute;
    batch.taps = taps;
    batch.to_layer = to_layer;
    return model.forward(batch, state);
  }
  const c10::InferenceMode inference_;
  at::Tensor ids_;
};

TEST_F(TapProbe, AnIdentityChangesNothing) {
  Taps taps;
  std::vector<std::string> seen;
  taps.add("layers.10.mlp.act", [&](std::string_view name, const at::Tensor& value) {
    seen.emplace_back(name);
    EXPECT_EQ(value.sizes(), (at::IntArrayRef{1, 24, 1536}));
    return value.clone();
  });
  EXPECT_LE(check::largest_difference(run(&taps).logits, run(nullptr).logits), 1e-4);
  EXPECT_EQ(seen, (std::vector<std::string>{"layers.10.mlp.act"})) << "no other layer was asked";
  EXPECT_LE(check::rms_error(run(&taps, -1, Compute::automatic).logits,
                             run(nullptr, -1, Compute::automatic).logits),
            1e-2)
      << "on the default path too";
}

TEST_F(TapProbe, ZeroingTheActivationRemovesTheLayersFeedForward) {
  Taps taps;
  taps.add("layers.10.mlp.act",
           [](std::string_view, const at::Tensor& value) { return at::zeros_like(value); });
  EXPECT_GT(check::largest_difference(run(&taps).logits, run(nullptr).logits), 0.1);
  EXPECT_TRUE(check::identical(run(&taps, 10).hidden, run(nullptr, 10).hidden))
      << "the layers before it are as they were";
  // After layer 10 what is missing is exactly what its feed-forward added: the residual stream behind its attention stays.
  at::Tensor before, attended, after;
  Taps watching;
  watching.add("layers.10.*", [&](std::string_view name, const at::Tensor& value) {
    if (name.ends_with("resid.pre")) before = value;
    if (name.ends_with("attn.out")) attended = value;
    if (name.ends_with("mlp.act")) return at::zeros_like(value);
    if (name.ends_with("resid.post")) after = value;
    return value;
  });
  (void)run(&watching, 11);
  EXPECT_TRUE(check::close(after, before + attended, 1e-6));
}

TEST_F(TapProbe, PatchesOneTokenFromAnotherRun) {
  // The activation of the last token is replaced by the one of another text: only the last token's logits move.
  at::Tensor other;
  Taps recording, patching;
  recording.add("layers.10.mlp.act",
                [&](std::string_view, const at::Tensor& value) { return other = value.clone(); });
  const auto own = ids_.clone();
  const auto plain = run(nullptr).logits;
  ids_ = ids_.roll(5, 1);
  (void)run(&recording);
  ids_ = own;
  patching.add("layers.10.mlp.act", [&](std::string_view, const at::Tensor& value) {
    auto out = value.clone();
    out.select(1, 23).copy_(other.select(1, 23));
    return out;
  });
  const auto patched = run(&patching).logits;
  EXPECT_TRUE(check::identical(patched.narrow(1, 0, 23), plain.narrow(1, 0, 23)));
  EXPECT_GT(check::largest_difference(patched.select(1, 23), plain.select(1, 23)), 1e-2);
}

TEST_F(TapProbe, OnlyArmedLayersAreArmed) {
  Taps taps;
  taps.add("layers.10.mlp.act", [](std::string_view, const at::Tensor& value) { return value; });
  Call call;
  call.taps = &taps;
  for (std::int64_t layer = 0; layer < 30; ++layer) {
    call.at = "layers." + std::to_string(layer);
    EXPECT_EQ(tapped(call), layer == 10);
  }
  call.taps = nullptr;
  call.at = "layers.10";
  EXPECT_FALSE(tapped(call));
  const auto none = run(nullptr).logits;
  Taps elsewhere;  // a tap on a point that no layer passes costs no difference at all
  elsewhere.add("layers.77.*",
                [](std::string_view, const at::Tensor& value) { return at::zeros_like(value); });
  EXPECT_TRUE(check::identical(run(&elsewhere).logits, none));
}

}  // namespace
}  // namespace mneme
