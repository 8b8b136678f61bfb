// Heads that read nothing: none, all of a layer, and some, each against a computation of the test's own.
#include "mneme/probes/head_mask.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "../bench/kv_models.h"
#include "../tensor_check.h"
#include <gtest/gtest.h>

namespace mneme {
namespace {

constexpr std::int64_t kLayers = 2, kHeads = 4, kWidth = 8;

at::Tensor logits_of(const LanguageModel& model, const Taps* taps = nullptr) {
  const c10::InferenceMode inference;
  auto state = model.model->start(1);
  Batch batch;
  const auto ids = check::letter_ids(40, 3);
  batch.ids = at::tensor(at::ArrayRef<std::int32_t>(ids), at::kInt).to(at::kLong).unsqueeze(0);
  batch.logits_at = LogitsAt::all;
  batch.compute = Compute::f32;
  batch.taps = taps;
  return model.model->forward(batch, state).logits;
}

TEST(MaskedHeads, NoneLeavesTheModelAsItIs) {
  auto model = check::letter_model();
  const auto base = logits_of(model);
  {
    const MaskedHeads masked(model, {});
    EXPECT_TRUE(logits_of(model).equal(base));
  }
  {
    const MaskedHeads masked(model, {{1, 2}});
    EXPECT_FALSE(logits_of(model).equal(base));
  }
  EXPECT_TRUE(logits_of(model).equal(base)) << "the model is given back as it was";
}

TEST(MaskedHeads, AllOfALayerSkipItsAttention) {
  auto model = check::letter_model();
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    // The residual stream gets nothing of this attention.
    Taps skip;
    skip.add("layers." + std::to_string(layer) + ".attn.out",
             [](std::string_view, const at::Tensor& y) { return at::zeros_like(y); });
    const auto want = logits_of(model, &skip);
    std::vector<HeadPlace> all;
    for (std::int64_t h = 0; h < kHeads; ++h) all.emplace_back(layer, h);
    const MaskedHeads masked(model, all);
    EXPECT_TRUE(logits_of(model).equal(want)) << "layer " << layer;
  }
}

TEST(MaskedHeads, SomeAreTheModelWhoseOutputProjectionTakesNothingOfThem) {
  auto model = check::letter_model(), edited = check::letter_model();
  const std::vector<HeadPlace> heads{{0, 1}, {1, 0}, {1, 3}};
  for (const auto& [layer, head] : heads) {
    edited.params.find("layers." + std::to_string(layer) + ".attn.out.weight")
        ->tensor.narrow(1, head * kWidth, kWidth)
        .zero_();
  }
  const auto want = logits_of(edited), base = logits_of(model);
  const MaskedHeads masked(model, heads);
  EXPECT_TRUE(check::close(logits_of(model), want, 1e-5));
  EXPECT_GT(check::rms_error(base, want), 1e-2) << "heads that nothing depends on show nothing";
}

TEST(MaskedHeads, TapsOfAPassAreKept) {
  auto model = check::letter_model();
  const MaskedHeads masked(model, {{0, 2}});
  std::int64_t seen = 0;
  Taps taps;
  taps.add("layers.*.attn.q", [&](std::string_view, const at::Tensor& q) {
    ++seen;
    return q;
  });
  EXPECT_TRUE(logits_of(model, &taps).equal(logits_of(model)));
  EXPECT_EQ(seen, kLayers);
}

TEST(MaskedHeads, HeadsThatThereAreNotAreRefused) {
  auto model = check::letter_model();
  check::expect_error(Errc::invalid, "2 layers",
                      [&] { const MaskedHeads masked(model, {{2, 0}}); });
  const auto base = logits_of(model);
  check::expect_error(Errc::invalid, "head 4 of 4", [&] {
    const MaskedHeads masked(model, {{1, 4}});
    (void)logits_of(model);
  });
  EXPECT_TRUE(logits_of(model).equal(base));
}

TEST(HeadsByScore, AreInOrderAndEqualOnesAsTheyStand) {
  const auto scores = at::tensor({0.1, 0.5, 0.2, 0.5, 0.0, 0.9}).view({2, 3});
  const std::vector<HeadPlace> want{{1, 2}, {0, 1}, {1, 0}, {0, 2}, {0, 0}, {1, 1}};
  EXPECT_EQ(heads_by_score(scores), want);
}

}  // namespace
}  // namespace mneme
