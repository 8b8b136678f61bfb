// Lists of pipelines, and contexts that several of them hold.
#include <c10/core/InferenceMode.h>

#include "../tensor_check.h"
#include "bench/kv/context.h"
#include "bench/kv/pipelines.h"
#include "kv_models.h"
#include <gtest/gtest.h>

namespace mneme::bench {
namespace {

TEST(Pipelines, TheFullCacheComesFirst) {
  const auto none = parse_pipelines("  "),
             two = parse_pipelines("window( sinks=4, size=256) ;quantize(bits=8)");
  ASSERT_EQ(none.size(), 1u);
  EXPECT_EQ(none[0].name, "full");
  EXPECT_EQ(none[0].plan, nullptr);
  ASSERT_EQ(two.size(), 3u);
  EXPECT_EQ(two[0].name, "full");
  EXPECT_EQ(two[1].plan->max_entries(), 260);
  EXPECT_EQ(two[2].plan->codec_name(), "q8");
}

TEST(Pipelines, AnErrorSaysWhichOfTheListIsWrong) {
  check::expect_error(Errc::usage, "pipeline 2, 'quantize(bits=5)'",
                      [] { parse_pipelines("quantize; quantize(bits=5)"); });
  check::expect_error(Errc::usage, "pipeline 1, 'windw(size=2)'",
                      [] { parse_pipelines("windw(size=2); quantize"); });
  check::expect_error(Errc::usage, "pipeline 3, 'window(size=)'",
                      [] { parse_pipelines("quantize; window; window(size=)"); });
  check::expect_error(Errc::usage, "pipeline 2 is empty",
                      [] { parse_pipelines("quantize; ; window"); });
  check::expect_error(Errc::usage, "pipeline 2 is empty", [] { parse_pipelines("quantize;"); });
  check::expect_error(Errc::usage, "pipeline 2, 'quantize(bits=8)': stands in the list twice",
                      [] { parse_pipelines("quantize; quantize(bits=8)"); });
}

/// Feeds ids in chunks by the model's own call, without anything of the suites.
State by_hand(const LanguageModel& model, const std::vector<std::int32_t>& ids, std::size_t chunk,
              const std::shared_ptr<const KvPlan>& plan) {
  auto state = model.model->start(1);
  if (plan) use_plan(state, plan);
  for (std::size_t at = 0; at < ids.size(); at += chunk)
    (void)model.run({ids.begin() + static_cast<std::ptrdiff_t>(at),
                     ids.begin() + static_cast<std::ptrdiff_t>(std::min(ids.size(), at + chunk))},
                    state);
  return state;
}

at::Tensor next_logits(const LanguageModel& model, const State& state) {
  auto own = state.fork();
  return model.run({7, 3, 11}, own, LogitsAt::all).logits;
}

TEST(Context, WhatOnlyEncodesIsTheSameForkedAsAlone) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto pipelines = parse_pipelines("quantize(bits=4); quantize(bits=8)");
  const auto ids = check::letter_ids(200, 1);
  ContextReader reader(model, pipelines, ids, {32});
  const auto full = by_hand(model, ids, 32, nullptr);
  for (std::size_t p = 1; p < pipelines.size(); ++p) {
    auto want = full.fork();
    use_plan(want, pipelines[p].plan);
    const auto got = reader.read(pipelines[p]);
    EXPECT_TRUE(got.shared);
    EXPECT_EQ(got.tokens, 200);
    EXPECT_TRUE(check::identical(next_logits(model, got.state), next_logits(model, want)));
    EXPECT_EQ(got.bytes, kv_usage(want).bytes);
    EXPECT_EQ(got.most_bytes, kv_usage(full).bytes) << "everything was there before it was encoded";
    EXPECT_LT(got.bytes, got.most_bytes);
  }
  // Encoding in forks has left the shared reading as it was.
  const auto again = reader.read(pipelines[0]);
  EXPECT_TRUE(check::identical(next_logits(model, again.state), next_logits(model, full)));
  EXPECT_FALSE(check::close(next_logits(model, reader.read(pipelines[1]).state),
                            next_logits(model, full), 1e-4));
}

TEST(Context, ReadAloneEveryPipelineActsFromTheFirstTokenOn) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto pipelines = parse_pipelines("quantize(bits=4); window(sinks=2, size=10)");
  const auto ids = check::letter_ids(200, 2);
  ContextReader alone(model, pipelines, ids, {32, true}), shared(model, pipelines, ids, {32});
  for (const auto& pipeline : pipelines) {
    const auto got = alone.read(pipeline);
    EXPECT_FALSE(got.shared);
    EXPECT_TRUE(check::identical(next_logits(model, got.state),
                                 next_logits(model, by_hand(model, ids, 32, pipeline.plan))));
  }
  const auto window = shared.read(pipelines[2]);
  EXPECT_FALSE(window.shared) << "what drops entries changes what later tokens see";
  EXPECT_EQ(window.kept, 12);
  EXPECT_TRUE(check::identical(next_logits(model, window.state),
                               next_logits(model, alone.read(pipelines[2]).state)));
}

TEST(Context, WhatActsAtThePromptsEndIsTheSameForkedAsReadAlone) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto pipelines = parse_pipelines(
      "k_norm | keep(entries=30, recent=4, when=end); "
      "snapkv(window=8) | keep(ratio=0.3, recent=4, when=end); "
      "h2o | keep(ratio=0.2, recent=4, when=end)");
  const auto ids = check::letter_ids(200, 11);
  ContextReader alone(model, pipelines, ids, {32, true}), shared(model, pipelines, ids, {32});
  const auto full = next_logits(model, by_hand(model, ids, 32, nullptr));
  for (std::size_t p = 1; p < pipelines.size(); ++p) {
    const auto forked = shared.read(pipelines[p]), own = alone.read(pipelines[p]);
    EXPECT_TRUE(forked.shared);
    EXPECT_FALSE(own.shared);
    EXPECT_LT(forked.kept, 100) << pipelines[p].name;
    EXPECT_NEAR(forked.kept, own.kept, 1e-9) << pipelines[p].name;
    EXPECT_LT(forked.bytes, forked.most_bytes);
    EXPECT_TRUE(check::close(next_logits(model, forked.state), next_logits(model, own.state), 1e-5))
        << pipelines[p].name;
    EXPECT_FALSE(check::close(next_logits(model, forked.state), full, 1e-4)) << pipelines[p].name;
  }
  EXPECT_TRUE(check::close(next_logits(model, shared.read(pipelines[0]).state), full, 1e-5));
}

TEST(Context, TellsWhatActsWhileItIsRead) {
  const auto acts = [](const char* spec) {
    return acts_during_prefill(*parse_pipelines(spec)[1].plan);
  };
  EXPECT_FALSE(acts("quantize(bits=4)"));
  EXPECT_TRUE(acts("window(size=10)"));
  EXPECT_TRUE(acts("window(size=10) | quantize"));
  EXPECT_TRUE(acts("k_norm | keep"));
  EXPECT_FALSE(acts("k_norm | keep(when=end)"));
}

TEST(Context, WhatDoesNotFitIsARefusalForEveryPipeline) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model(40);
  const auto pipelines = parse_pipelines("quantize(bits=4)");
  ContextReader reader(model, pipelines, check::letter_ids(50, 3), {16});
  for (const auto& pipeline : pipelines) {
    check::expect_error(Errc::full, "context of 40 tokens", [&] { (void)reader.read(pipeline); });
  }
  EXPECT_EQ(refusal_of(Error(Errc::full, "too long")), "too long");
  EXPECT_EQ(refusal_of(Error(Errc::unsupported, "cannot")), "cannot");
  check::expect_error(Errc::invalid, "a bug",
                      [] { (void)refusal_of(Error(Errc::invalid, "a bug")); });
  check::expect_error(Errc::usage, "no tokens", [&] { ContextReader(model, pipelines, {}, {16}); });
}

TEST(Context, DecodingLeavesItAsItWas) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto state = by_hand(model, check::letter_ids(20, 4), 20, nullptr);
  const auto before = next_logits(model, state);
  EXPECT_GT(decode_seconds(model, state, 5, 4), 0);
  EXPECT_TRUE(check::identical(next_logits(model, state), before));
}

}  // namespace
}  // namespace mneme::bench
