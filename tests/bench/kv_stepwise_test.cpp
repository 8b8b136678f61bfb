// Texts that are shown token by token behind a context, and needles at the longest length that is known.
#include <c10/core/InferenceMode.h>

#include "../tensor_check.h"
#include "bench/kv/calibrated.h"
#include "bench/kv/known_length.h"
#include "bench/kv/stepwise.h"
#include "kv_models.h"
#include <gtest/gtest.h>

namespace mneme::bench {
namespace {

TEST(Stepwise, NllIsThatOfTheTokensAsTheyComeOneByOne) {
  const auto model = check::letter_model();
  const auto heads = measure_heads(model, "key_pca(tokens=300, positions=300)", "", 300, 1, [] {});
  const std::vector<Pipeline> pipelines = {
      {std::string(kFullCache), nullptr},
      calibrated_pipeline("loki(rank=2, keep=1)", heads.profile),
      calibrated_pipeline("loki(rank=2, keep=0.05)", heads.profile)};
  const std::vector<std::vector<std::int32_t>> texts{check::letter_ids(210, 1),
                                                     check::letter_ids(212, 2)};
  ContextOptions options;
  options.chunk = 64;
  const auto found = measure_steps(model, pipelines, texts, 200, options);
  ASSERT_EQ(found.size(), 3u);
  const c10::InferenceMode inference;
  for (std::size_t t = 0; t < texts.size(); ++t) {
    const auto& text = texts[t];
    auto state = model.model->start(1);
    (void)model.run({text.begin(), text.begin() + 200}, state);
    double sum = 0;
    for (std::size_t i = 200; i + 1 < text.size(); ++i)
      sum -= check::log_softmax_of(
          model.run({text[i]}, state).logits)[static_cast<std::size_t>(text[i + 1])];
    const auto mean = sum / static_cast<double>(text.size() - 201);
    EXPECT_NEAR(found[0][t], mean, 1e-4);
    EXPECT_NEAR(found[1][t], mean, 1e-4) << "all is read";
    EXPECT_GT(std::abs(found[2][t] - mean), 1e-5) << "steps read less, chunks would not";
  }
  check::expect_error(Errc::usage, "2 of continuation",
                      [&] { (void)measure_steps(model, pipelines, texts, 209, options); });
}

TEST(KnownLength, WhatIsNeverKnownIsComparedAtTheShortest) {
  const auto model = check::letter_model();
  const auto pipelines = parse_pipelines("window(sinks=0, size=1000); window(sinks=1, size=4)");
  RecallSettings settings;
  settings.samples = 4;
  settings.generate = false;
  settings.seed = 2;
  settings.context.chunk = 64;
  const std::string task = "needle(form=number, digits=2)";
  // Letters drawn at random know nothing of what they read.
  const auto found = rank_at_known_length(model, pipelines, task, {150, 200, 170}, "", settings);
  EXPECT_FALSE(found.known);
  EXPECT_EQ(found.tokens, 150);
  ASSERT_EQ(found.ranking.size(), 3u);
  std::vector<RecallCell> cells;
  for (const double depth : {0.0, 0.25, 0.5, 0.75, 1.0}) cells.push_back({task, 150, depth});
  const auto asked = measure_recall(model, pipelines, cells, "", settings);
  for (std::size_t p = 0; p < 3; ++p) {
    double right = 0;
    for (std::size_t c = 0; c < cells.size(); ++c)
      right += cell_mean(asked, p, c, RecallScore::ranked) / 5;
    EXPECT_NEAR(found.ranking[p], right, 1e-12);
  }
  EXPECT_EQ(found.ranking[1], found.ranking[0]) << "it keeps all";
  check::expect_error(Errc::usage, "--lengths", [&] {
    (void)rank_at_known_length(model, pipelines, task, {}, "", settings);
  });
}

}  // namespace
}  // namespace mneme::bench
