// Ranking against sums by hand, and comparisons that are paired.
#include "mneme/kv/retrieving_kv.h"

#include <c10/core/InferenceMode.h>

#include "../tensor_check.h"
#include "bench/kv/evidence.h"
#include "bench/kv/recall.h"
#include "kv_models.h"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <set>

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
  ASSERT_EQ(rows[1].scores.size(), 5u);
  EXPECT_EQ(rows[1].scores[4].name, "evidence");
  EXPECT_EQ(rows[1].scores[4].value.value, 1);
  for (const std::size_t difference : {1u, 3u}) {
    EXPECT_EQ(rows[1].scores[difference].value.value, 0);
    EXPECT_EQ(rows[1].scores[difference].value.low, 0);
    EXPECT_EQ(rows[1].scores[difference].value.high, 0);
  }
  EXPECT_EQ(rows[1].footprint.contexts(), 20);
  EXPECT_EQ(rows[1].more["cells"].size(), 2u);
  EXPECT_EQ(rows[1].more["cells"][1]["evidence"], 1);
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
  ASSERT_EQ(rows[1].scores.size(), 5u);
  EXPECT_TRUE(std::isnan(rows[1].scores[4].value.value)) << "no evidence was told";
  EXPECT_TRUE(rows[1].more["cells"][0]["evidence"].is_null());
  EXPECT_EQ(rows[1].more["lengths"].size(), 1u);
  EXPECT_NEAR(rows[1].more["lengths"][0]["ranking"].get<double>(), 0.5, 1e-12);
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

TEST(RecallTogether, OneTextServesAllDepthsAsAskedByHand) {
  const auto model = check::letter_model();
  const auto pipelines =
      parse_pipelines("window(sinks=2, size=30); k_norm | keep(ratio=0.5, when=end)");
  const std::vector<RecallCell> cells = {{kTask, 400, 0.0},
                                         {kTask, 300, 0.0},
                                         {kTask, 400, 0.5},
                                         {kTask, 300, 0.5},
                                         {kTask, 400, 1.0}};
  RecallSettings settings;
  settings.samples = 3;
  settings.seed = 3;
  settings.generate = false;
  settings.together = true;
  settings.context.chunk = 16;
  const auto found = measure_recall(model, pipelines, cells, "", settings);
  const c10::InferenceMode inference;
  const auto task = registry().make<RecallTask>(kTask, "");
  for (std::size_t p = 0; p < pipelines.size(); ++p) {
    EXPECT_EQ(found.footprints[p].contexts(), 2 * 3) << "a text of each length is read once";
    for (const auto& [tokens, of] : std::vector<std::pair<std::int64_t, std::vector<std::size_t>>>{
             {400, {0, 2, 4}}, {300, {1, 3}}}) {
      for (std::uint64_t s = 0; s < 3; ++s) {
        std::vector<double> depths;
        for (const auto cell : of) depths.push_back(cells[cell].depth);
        auto chance = Generator(3).split(static_cast<std::uint64_t>(tokens)).split(0).split(s);
        const auto samples = task->draw_together(tokens, depths, *model.tokenizer, chance);
        for (std::size_t i = 0; i < of.size(); ++i) {
          auto state = model.model->start(1);  // a reading for each question
          if (pipelines[p].plan && acts_during_prefill(*pipelines[p].plan))
            use_plan(state, pipelines[p].plan);
          const auto text = model.tokenizer->encode(samples[i].context),
                     question = model.tokenizer->encode(samples[i].question);
          ContextOptions options;
          options.chunk = 16;
          feed(model, state, text, LogitsAt::none, options);
          if (pipelines[p].plan && !acts_during_prefill(*pipelines[p].plan))
            use_plan(state, pipelines[p].plan);
          if (pipelines[p].plan) finish_prompt(state);
          at::Tensor logits;
          feed(model, state, question, LogitsAt::last, options,
               [&](const at::Tensor& last) { logits = last; });
          std::vector<std::vector<std::int32_t>> candidates;
          for (const auto& candidate : samples[i].candidates)
            candidates.push_back(model.tokenizer->encode(candidate));
          const auto sums = sums_by_hand(model, state, logits, candidates);
          const bool best = std::count_if(sums.begin(), sums.end(),
                                          [&](double sum) { return sum >= sums[0]; }) == 1;
          const auto& outcome = found.outcomes[p][of[i] * 3 + s];
          EXPECT_TRUE(outcome.measured);
          EXPECT_EQ(outcome.ranked, best ? 1 : 0) << p << ", cell " << of[i] << ", " << s;
          EXPECT_EQ(outcome.bytes, found.outcomes[p][of[0] * 3 + s].bytes);
        }
      }
    }
  }
  settings.question_before = true;
  check::expect_error(Errc::usage, "question=after",
                      [&] { (void)measure_recall(model, pipelines, cells, "", settings); });
}

/// Entries that a head of a layer could read, looked up in what the store shows of itself.
std::set<std::int64_t> read_by(const KvStore& store, std::size_t head, std::int64_t seen,
                               std::int64_t sinks) {
  const auto& own = dynamic_cast<const RetrievingKv&>(store);
  std::set<std::int64_t> out;
  for (std::int64_t i = 0; i < sinks; ++i) out.insert(i);
  auto starts = own.block_starts(0);
  starts.push_back(seen - (own.recent(0) - sinks));
  const auto& chosen = own.chosen(0);
  for (const auto id : chosen.size() == 1 ? chosen[0] : chosen.at(head)) {
    for (auto i = starts[static_cast<std::size_t>(id)];
         i < starts[static_cast<std::size_t>(id) + 1]; ++i)
      out.insert(i);
  }
  for (auto i = starts.back(); i < seen; ++i) out.insert(i);
  return out;
}

TEST(EvidenceRecall, CountsWhatHeadsCouldReadAtTheQuestionsEnd) {
  const auto model = check::letter_model();
  // A block holds one entry: what becomes a block behind the last step was read in that step as the remainder.
  const auto pipelines = parse_pipelines(
      "window(sinks=4, size=60); infllm(sinks=4, local=40, block=1, topk=60, chunk=8, "
      "per_head=true); quest(pages=1)");
  RecallSettings settings;
  settings.samples = 12;
  settings.generate = false;
  settings.context.chunk = 16;
  const RecallCell cell{kTask, 400};
  const auto found = measure_recall(model, pipelines, {cell}, "", settings);
  const c10::InferenceMode inference;
  const auto task = registry().make<RecallTask>(kTask, "");
  double part_of_retrieved = 0;
  for (std::uint64_t s = 0; s < 12; ++s) {
    auto chance = Generator(0).split(400).split(0).split(s);
    const auto sample = task->draw({400, -1}, *model.tokenizer, chance);
    const auto text = model.tokenizer->encode(sample.context + sample.question);
    const auto seen = static_cast<std::int64_t>(text.size());
    // A token is a byte here.
    const auto [begin, end] = sample.evidence.at(0);
    const auto share = [&](const auto& holds) {
      double out = 0;
      for (auto i = begin; i < end; ++i) out += holds(i) ? 1 : 0;
      return out / static_cast<double>(end - begin);
    };
    EXPECT_EQ(found.outcomes[0][s].evidence, 1);
    EXPECT_NEAR(found.outcomes[1][s].evidence,
                share([&](std::int64_t i) { return i < 4 || i >= seen - 60; }), 1e-12);
    EXPECT_TRUE(std::isnan(found.outcomes[3][s].evidence));
    auto state = model.model->start(1);
    use_plan(state, pipelines[2].plan);
    ContextOptions options;
    options.chunk = 16;
    feed(model, state, std::span(text).first(sample.context.size()), LogitsAt::none, options);
    feed(model, state, std::span(text).subspan(sample.context.size()), LogitsAt::none, options);
    double sum = 0, heads = 0;
    for (const auto* store : kv_stores(std::as_const(state))) {
      const auto before = dynamic_cast<const RetrievingKv&>(*store).recent(0);
      // Entries of the remainder in the last chunk, which blocks were made of behind it.
      const auto asked = seen - static_cast<std::int64_t>(sample.context.size());
      const auto last_chunk = std::min((seen - 1) % 8, (asked - 1) % 16) + 1;
      for (std::int64_t h = 0; h < store->shape().heads; ++h, ++heads) {
        auto read = read_by(*store, static_cast<std::size_t>(h), seen, 4);
        for (auto i = seen - (before - 4); i > seen - (before - 4) - last_chunk && i > 4; --i)
          read.insert(i - 1);
        sum += share([&](std::int64_t i) { return read.contains(i); });
      }
    }
    EXPECT_NEAR(found.outcomes[2][s].evidence, sum / heads, 1e-12) << s;
    part_of_retrieved += found.outcomes[2][s].evidence;
  }
  EXPECT_GT(part_of_retrieved, 0.05 * 12);
  EXPECT_LT(part_of_retrieved, 0.95 * 12);
  const auto rows = recall_rows(pipelines, found);
  EXPECT_NEAR(rows[2].more["cells"][0]["evidence"].get<double>(), part_of_retrieved / 12, 1e-12);
  EXPECT_TRUE(rows[3].more["cells"][0]["evidence"].is_null());
}

TEST(EvidenceRecall, TokensAreThoseThatHoldAByte) {
  const check::LetterTokenizer letters;
  const auto ids = letters.encode("one fact of two", {});
  using Ranges = std::vector<EntryRange>;
  using Bytes = std::vector<std::pair<std::int64_t, std::int64_t>>;
  EXPECT_EQ(tokens_at(letters, ids, 15, Bytes{{4, 8}, {12, 15}}), (Ranges{{4, 8}, {12, 15}}));
  EXPECT_EQ(tokens_at(letters, ids, 15, Bytes{{0, 1}, {3, 3}}), (Ranges{{0, 1}}));
  EXPECT_TRUE(tokens_at(letters, ids, 16, Bytes{{4, 8}}).empty()) << "bytes are missing";
}

}  // namespace
}  // namespace mneme::bench
