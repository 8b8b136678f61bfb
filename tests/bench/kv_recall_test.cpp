// Ranking against sums by hand, and comparisons that are paired.
#include <c10/core/InferenceMode.h>

#include "../tensor_check.h"
#include "bench/kv/recall.h"
#include "kv_models.h"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>

namespace mneme::bench {
namespace {

// A model of letters meets it as a text of letters.
constexpr const char* kTask = "needle(form=number, digits=2)";

/// The same sums, each candidate run alone.
std::vector<double> sums_by_hand(const LanguageModel& model, const State& state,
                                 const at::Tensor& logits,
                                 const std::vector<std::vector<std::int32_t>>& candidates) {
  std::vector<double> out;
  for (const auto& candidate : candidates) {
    auto own = state.fork();
    double sum = check::log_softmax_of(logits)[static_cast<std::size_t>(candidate[0])];
    if (candidate.size() > 1) {
      const auto all =
          model.run({candidate.begin(), candidate.end() - 1}, own, LogitsAt::all).logits[0];
      for (std::size_t i = 1; i < candidate.size(); ++i)
        sum += check::log_softmax_of(
            all[static_cast<std::int64_t>(i) - 1])[static_cast<std::size_t>(candidate[i])];
    }
    out.push_back(sum);
  }
  return out;
}

TEST(Ranking, OnePassGivesTheSumsOfEachCandidateAlone) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const std::vector<std::vector<std::int32_t>> candidates{
      {3}, {3, 4, 5, 6}, {9, 1}, {48, 2, 2}, {0}};
  for (const auto& pipeline : parse_pipelines("window(sinks=1, size=100) | quantize(bits=8)")) {
    auto state = model.model->start(1);
    if (pipeline.plan) use_plan(state, pipeline.plan);
    const auto logits = model.run(check::letter_ids(150, 1), state).logits;
    const auto before = kv_usage(state).seen;
    const auto got = candidate_log_probabilities(model, state, logits, candidates);
    const auto want = sums_by_hand(model, state, logits, candidates);
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < got.size(); ++i)
      EXPECT_NEAR(got[i], want[i], 1e-4) << pipeline.name << ", candidate " << i;
    EXPECT_EQ(kv_usage(state).seen, before) << "ranking leaves the state as it was";
  }
  auto state = model.model->start(1);
  const auto logits = model.run({1, 2}, state).logits;
  check::expect_error(Errc::invalid, "no tokens", [&] {
    (void)candidate_log_probabilities(model, state, logits,
                                      std::vector<std::vector<std::int32_t>>{{1}, {}});
  });
}

TEST(Recall, OutcomesAreThoseOfTheTaskAskedByHand) {
  const auto model = check::letter_model();
  const auto pipelines = parse_pipelines("window(sinks=2, size=6)");
  RecallSettings settings;
  settings.samples = 8;
  settings.seed = 3;
  settings.context.chunk = 16;
  for (const bool before : {false, true}) {
    settings.question_before = before;
    const auto found = measure_recall(model, pipelines, {{kTask, 200}}, "", settings);
    const c10::InferenceMode inference;
    const auto task = registry().make<RecallTask>(kTask, "");
    for (std::size_t p = 0; p < pipelines.size(); ++p) {
      double right = 0;
      for (std::uint64_t s = 0; s < 8; ++s) {
        auto chance = Generator(3).split(200).split(0).split(s);
        const auto sample = task->draw({200, -1}, *model.tokenizer, chance);
        const auto text = model.tokenizer->encode(sample.context + sample.question);
        ASSERT_GT(text.size(), 100u);
        const auto cut =
            static_cast<std::ptrdiff_t>(before ? text.size() - 1 : sample.context.size());
        auto state = model.model->start(1);
        if (pipelines[p].plan) use_plan(state, pipelines[p].plan);
        at::Tensor logits;
        const auto show = [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
          for (auto at = begin; at < end; at += 16)
            logits =
                model.run({text.begin() + at, text.begin() + std::min(end, at + 16)}, state).logits;
        };
        show(0, cut);
        show(cut, static_cast<std::ptrdiff_t>(text.size()));
        std::vector<std::vector<std::int32_t>> candidates;
        for (const auto& candidate : sample.candidates)
          candidates.push_back(model.tokenizer->encode(candidate));
        const auto sums = sums_by_hand(model, state, logits, candidates);
        const bool best = std::count_if(sums.begin(), sums.end(),
                                        [&](double sum) { return sum >= sums[0]; }) == 1;
        const auto& outcome = found.outcomes[p][s];
        EXPECT_TRUE(outcome.measured);
        EXPECT_EQ(outcome.ranked, best ? 1 : 0);
        right += best;
        std::string said;  // greedily, one by one
        auto last = logits;
        for (std::int64_t i = 0; i < task->answer_tokens(); ++i) {
          const auto next = static_cast<std::int32_t>(last.argmax(-1).item<std::int64_t>());
          said += model.tokenizer->token_bytes(next);
          last = model.run({next}, state).logits;
        }
        EXPECT_EQ(outcome.generated, task->score(said, sample));
      }
      EXPECT_NEAR(cell_mean(found, p, 0, RecallScore::ranked), right / 8, 1e-12);
    }
  }
}

TEST(Recall, APipelineThatKeepsEverythingDiffersInNothing) {
  const auto model = check::letter_model();
  const auto pipelines = parse_pipelines("window(sinks=0, size=1000)");
  RecallSettings settings;
  settings.samples = 10;
  settings.context.chunk = 16;
  const auto rows =
      recall_rows(pipelines, measure_recall(model, pipelines,
                                            {{kTask, 150}, {"needle(form=number, digits=5)", 200}},
                                            "", settings));
  ASSERT_EQ(rows.size(), 2u);
  ASSERT_EQ(rows[1].scores.size(), 4u);
  for (const std::size_t difference : {1u, 3u}) {
    EXPECT_EQ(rows[1].scores[difference].value.value, 0);
    EXPECT_EQ(rows[1].scores[difference].value.low, 0);
    EXPECT_EQ(rows[1].scores[difference].value.high, 0);
  }
  EXPECT_EQ(rows[1].footprint.contexts(), 20);
  EXPECT_EQ(rows[1].more["cells"].size(), 2u);
}

TEST(Recall, SamplesDependOnTheirCellAlone) {
  const auto model = check::letter_model();
  const auto full = parse_pipelines("");
  RecallSettings settings;
  settings.samples = 6;
  settings.generate = false;
  const RecallCell one{kTask, 150}, other{kTask, 200};
  const auto both = measure_recall(model, full, {one, other}, "", settings),
             alone = measure_recall(model, full, {other}, "", settings);
  for (std::size_t s = 0; s < 6; ++s) {
    EXPECT_EQ(both.outcomes[0][6 + s].ranked, alone.outcomes[0][s].ranked);
    EXPECT_TRUE(std::isnan(alone.outcomes[0][s].generated));
  }
}

TEST(Recall, DifferencesAreOfSamplesThatBothAnswered) {
  const auto pipelines = parse_pipelines("window; quantize");
  RecallOfPipelines findings;
  findings.cells = {{"a", 10}, {"b", 10}};
  findings.samples = 2;
  constexpr auto kNothing = std::numeric_limits<double>::quiet_NaN();
  findings.outcomes = {{{1, 0.5, true}, {0, 0.5, true}, {1, 1, true}, {0, kNothing, false}},
                       {{1, 0.5, true}, {0, 0.0, true}, {0, 0, true}, {1, 1, true}},
                       {{}, {}, {}, {}}};
  findings.footprints.resize(3);
  findings.refusals = {"", "", "does not fit"};
  const auto rows = recall_rows(pipelines, findings);
  ASSERT_EQ(rows[1].scores.size(), 4u);
  EXPECT_EQ(rows[1].scores[0].name, "ranking");
  EXPECT_NEAR(rows[1].scores[0].value.value, 0.5, 1e-12);
  EXPECT_NEAR(rows[1].scores[1].value.value, (1.0 + 0 + 0) / 3 - 2.0 / 3, 1e-12);
  EXPECT_NEAR(rows[1].scores[2].value.value, 1.5 / 4, 1e-12);
  EXPECT_NEAR(rows[1].scores[3].value.value, (0.5 + 0 + 0) / 3 - 2.0 / 3, 1e-12);
  EXPECT_TRUE(rows[2].scores.empty());
  EXPECT_EQ(rows[2].refusal, "does not fit");
  EXPECT_NEAR(cell_mean(findings, 1, 1, RecallScore::ranked), 0.5, 1e-12);
  EXPECT_TRUE(std::isnan(cell_mean(findings, 2, 0, RecallScore::ranked)));
}

TEST(Recall, WhatDoesNotFitIsRefusedAndTheRestIsMeasured) {
  const auto model = check::letter_model(250);
  const auto pipelines = parse_pipelines("quantize");
  RecallSettings settings;
  settings.samples = 3;
  settings.generate = false;
  const auto found = measure_recall(model, pipelines, {{kTask, 150}, {kTask, 400}}, "", settings);
  for (std::size_t p = 0; p < 2; ++p) {
    EXPECT_FALSE(std::isnan(cell_mean(found, p, 0, RecallScore::ranked)));
    EXPECT_TRUE(std::isnan(cell_mean(found, p, 1, RecallScore::ranked)));
    EXPECT_NE(found.refusals[p].find("400 tokens"), std::string::npos) << found.refusals[p];
    EXPECT_EQ(found.footprints[p].contexts(), 3);
  }
  check::expect_error(Errc::usage, "hold no sample", [&] {
    (void)measure_recall(model, pipelines, {{kTask, 150}, {kTask, 20}}, "", settings);
  });
}

}  // namespace
}  // namespace mneme::bench
