// Predictions behind compressed contexts and along streams, against sums by the definition.
#include <c10/core/InferenceMode.h>

#include "../tensor_check.h"
#include "bench/kv/divergence.h"
#include "bench/kv/forced.h"
#include "kv_models.h"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <numeric>

namespace mneme::bench {
namespace {

std::size_t largest(const std::vector<double>& x) {
  return static_cast<std::size_t>(std::max_element(x.begin(), x.end()) - x.begin());
}

/// KL, agreement and NLL of one pair of rows.
struct ByHand {
  double kl = 0, agreement = 0, nll = 0;
};
ByHand by_definition(const at::Tensor& full, const at::Tensor& method, std::int32_t came) {
  const auto p = check::log_softmax_of(full), q = check::log_softmax_of(method);
  ByHand out;
  for (std::size_t v = 0; v < p.size(); ++v) out.kl += std::exp(p[v]) * (p[v] - q[v]);
  out.agreement = largest(p) == largest(q) ? 1 : 0;
  out.nll = -q[static_cast<std::size_t>(came)];
  return out;
}

TEST(Divergence, IsWhatTheDefinitionSays) {
  const auto full = check::normal({5, 9}, 1), method = full + 0.8 * check::normal({5, 9}, 2);
  const std::vector<std::int32_t> came{0, 8, 3, 3, 1};
  const auto got = divergence(full, method, came);
  const auto nll = nll_of(method, came);
  double agreed = 0;
  for (std::int64_t t = 0; t < 5; ++t) {
    const auto i = static_cast<std::size_t>(t);
    const auto want = by_definition(full[t], method[t], came[i]);
    EXPECT_NEAR(got.kl[i], want.kl, 1e-12);
    EXPECT_EQ(got.agreement[i], want.agreement);
    EXPECT_NEAR(got.nll[i], want.nll, 1e-12);
    EXPECT_NEAR(nll[i], want.nll, 1e-12);
    agreed += want.agreement;
  }
  EXPECT_GT(agreed, 0) << "both cases of agreement are to be seen";
  EXPECT_LT(agreed, 5);
}

TEST(Continuation, APipelineThatKeepsEverythingIsTheFullCache) {
  const auto model = check::letter_model();
  const auto pipelines = parse_pipelines("window(sinks=0, size=1000)");
  std::vector<std::vector<std::int32_t>> texts;
  for (std::uint64_t i = 0; i < 3; ++i) texts.push_back(check::letter_ids(100, i + 1));
  const auto rows = continuation_rows(
      pipelines, measure_continuations(model, pipelines, texts, 80, 2, {32}), "80 tokens");
  ASSERT_EQ(rows.size(), 2u);
  for (const auto& row : rows) {
    ASSERT_EQ(row.scores.size(), 4u);
    EXPECT_EQ(row.scores[0].value.value, 0) << row.pipeline;
    EXPECT_EQ(row.scores[0].value.high, 0);
    EXPECT_EQ(row.scores[1].value.value, 1);
    EXPECT_EQ(row.scores[1].value.low, 1);
    EXPECT_EQ(row.scores[2].value.value, 0);
    EXPECT_GT(row.scores[3].value.value, 1) << "a random model on random letters";
    EXPECT_EQ(row.footprint.contexts(), 3);
    EXPECT_GT(row.footprint.decode_tokens_per_s(), 0);
  }
  EXPECT_NEAR(share_of_full(rows[1], rows).value_or(0), 1, 1e-12);
}

TEST(Continuation, ComparesEveryPredictionBehindTheCompressedContext) {
  const auto model = check::letter_model();
  const auto pipelines = parse_pipelines("window(sinks=1, size=8)");
  const std::vector<std::vector<std::int32_t>> texts{check::letter_ids(60, 5),
                                                     check::letter_ids(60, 6)};
  const auto found = measure_continuations(model, pipelines, texts, 50, 0, {16});
  const c10::InferenceMode inference;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    std::vector<at::Tensor> logits;
    for (const auto& pipeline : pipelines) {
      auto state = model.model->start(1);
      if (pipeline.plan) use_plan(state, pipeline.plan);
      for (std::size_t at = 0; at < 50; at += 16)
        (void)model.run(
            {texts[i].begin() + static_cast<std::ptrdiff_t>(at),
             texts[i].begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(50, at + 16))},
            state);
      logits.push_back(
          model.run({texts[i].begin() + 50, texts[i].end() - 1}, state, LogitsAt::all).logits[0]);
    }
    ByHand want, full;
    for (std::int64_t t = 0; t < 9; ++t) {
      const auto came = texts[i][static_cast<std::size_t>(51 + t)];
      const auto one = by_definition(logits[0][t], logits[1][t], came);
      want.kl += one.kl / 9;
      want.agreement += one.agreement / 9;
      want.nll += one.nll / 9;
      full.nll += by_definition(logits[0][t], logits[0][t], came).nll / 9;
    }
    const auto& got = found.outcomes[1][i];
    EXPECT_TRUE(got.measured);
    EXPECT_EQ(got.token_kl.size(), 9u);
    EXPECT_GT(got.kl, 1e-4);
    EXPECT_NEAR(got.kl, want.kl, 1e-9);
    EXPECT_NEAR(got.agreement, want.agreement, 1e-12);
    EXPECT_NEAR(got.nll, want.nll, 1e-9);
    EXPECT_NEAR(got.full_nll, full.nll, 1e-9);
  }
  check::expect_error(Errc::usage, "60 tokens where 59",
                      [&] { (void)measure_continuations(model, pipelines, texts, 59, 0, {16}); });
}

TEST(Continuation, WhatDoesNotFitIsARowThatSaysWhy) {
  const auto model = check::letter_model(40);
  const auto pipelines = parse_pipelines("quantize");
  const std::vector<std::vector<std::int32_t>> texts{check::letter_ids(60, 7)};
  const auto rows =
      continuation_rows(pipelines, measure_continuations(model, pipelines, texts, 50, 0, {16}), "");
  for (const auto& row : rows) {
    EXPECT_TRUE(row.scores.empty());
    EXPECT_NE(row.refusal.find("context of 40 tokens"), std::string::npos) << row.refusal;
  }
}

TEST(Stream, NllIsThatOfTheWholeText) {
  const auto model = check::letter_model();
  const auto ids = check::letter_ids(101, 8);
  const auto got = measure_stream(model, {"full", nullptr}, ids, {32});
  const c10::InferenceMode inference;
  auto state = model.model->start(1);
  const auto logits = model.run({ids.begin(), ids.end() - 1}, state, LogitsAt::all).logits[0];
  ASSERT_EQ(got.nll.size(), 100u);
  for (std::int64_t t = 0; t < 100; ++t) {
    const auto want = -check::log_softmax_of(
        logits[t])[static_cast<std::size_t>(ids[static_cast<std::size_t>(t + 1)])];
    EXPECT_NEAR(got.nll[static_cast<std::size_t>(t)], want, 1e-4);
  }
  EXPECT_EQ(got.refusal, "");
  EXPECT_EQ(got.context.tokens, 100);
}

TEST(Stream, ABoundedPipelineHoldsNoMoreAsTheTextGoesOn) {
  const auto model = check::letter_model();
  const auto window = parse_pipelines("window(sinks=4, size=60)")[1];
  const auto shorter = measure_stream(model, window, check::letter_ids(300, 9), {32}),
             longer = measure_stream(model, window, check::letter_ids(900, 9), {32}),
             full = measure_stream(model, {"full", nullptr}, check::letter_ids(900, 9), {32});
  EXPECT_EQ(longer.context.kept, 64);
  EXPECT_EQ(longer.context.most_bytes, shorter.context.most_bytes);
  EXPECT_LT(4 * longer.context.most_bytes, full.context.most_bytes);
}

TEST(Stream, PastTheContextItKeepsWhatItHadAndSaysWhy) {
  const auto model = check::letter_model(80);
  const auto got = measure_stream(model, {"full", nullptr}, check::letter_ids(200, 10), {32});
  EXPECT_EQ(got.nll.size(), 64u) << "two passes fit, a third does not";
  EXPECT_NE(got.refusal.find("context of 80 tokens"), std::string::npos) << got.refusal;
}

TEST(Stream, WhatWaitsForThePromptsEndIsRefused) {
  const auto model = check::letter_model();
  const auto got = measure_stream(model, parse_pipelines("k_norm | keep(when=end)")[1],
                                  check::letter_ids(100, 12), {32});
  EXPECT_TRUE(got.nll.empty());
  EXPECT_NE(got.refusal.find("end of a prompt"), std::string::npos);
}

TEST(Stream, WindowsAreMeansOfTheirNumbers) {
  const std::vector<double> x{1, 3, 5, 7, 10};
  EXPECT_EQ(window_means(x, 2), (std::vector<double>{2, 6, 10}));
  EXPECT_EQ(window_means(x, 10), (std::vector<double>{5.2}));
}

}  // namespace
}  // namespace mneme::bench
