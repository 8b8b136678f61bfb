// What every KV stage of the registry must do: alone in a plan, on a small random decoder.
#include "mneme/core/generator.h"
#include "mneme/kv/head_profile.h"
#include "mneme/kv/plan.h"
#include "mneme/mixers/kv_store.h"
#include "mneme/models/reconstruct.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/InferenceMode.h>

#include "../tiny_models.h"
#include <gtest/gtest.h>
#include <set>

namespace mneme {
namespace {

/// Every enrolled stage at its defaults, and further forms of those that have several.
std::vector<std::string> stage_specs() {
  auto out = registry().names(KvStage::kKind);
  const std::vector<std::string> more{"window(sinks=2, size=9)", "window(sinks=0, size=1)",
                                      "quantize(bits=4)", "every_other(sinks=1, recent=5)"};
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

/// Numbers about the heads of the tiny decoder, as a calibration might have found them.
std::shared_ptr<const HeadProfile> profile() {
  static const auto made = [] {
    auto out = std::make_shared<HeadProfile>();
    const auto generator = at::detail::createCPUGenerator(11);
    const auto random = [&](at::IntArrayRef sizes) { return at::randn(sizes, generator); };
    const auto basis = std::get<0>(at::linalg_qr(random({2, 2, 8, 8})));
    out->numbers = {{"qfilter", random({2, 2, 8})},
                    {"key_pca.post", basis},
                    {"key_pca.pre", basis},
                    {"retrieval_heads", at::rand({2, 4}, generator)},
                    {"evaluator_heads", at::rand({2, 4}, generator)}};
    return out;
  }();
  return made;
}

/// What a plan with a stage looks like: one that scores is followed by one that drops what scores low.
std::vector<std::string> chains_of(const std::string& spec) {
  const std::string keep = "keep(entries=40, sinks=2, recent=8, every=4)";
  const auto stage = registry().make<KvStage>(spec);
  switch (stage->role()) {
    case KvRole::score:
      if (stage->phase() == KvPhase::prefill_end)
        return {spec + " | keep(entries=40, sinks=2, recent=8, when=end)",
                spec + " | keep(ratio=0.3, sinks=1, recent=5, when=end)"};
      return {spec + " | " + keep, spec + " | keep(ratio=0.3, sinks=1, recent=5)"};
    case KvRole::budget:
      return {"h2o | " + spec + " | " + keep};
    case KvRole::merge:
      return {"h2o | " + keep + " | " + spec};
    case KvRole::place:
      return {"window(sinks=2, size=9) | " + spec, "h2o | " + keep + " | " + spec};
    case KvRole::evict:
      if (dynamic_cast<const EvictStage&>(*stage).wants_scores()) return {};
      return {spec};
    default:
      return {spec};
  }
}

/// Ends a prompt of one row.
void end_prompt(const check::TinyModel& tiny, State& state, const at::Tensor& ids) {
  std::vector<std::int32_t> prompt;
  for (std::int64_t t = 0; t < ids.size(1); ++t)
    prompt.push_back(static_cast<std::int32_t>(ids[0][t].item<std::int64_t>()));
  reconstruct(*tiny.model, Compute::f32, state, prompt, {{1, 2}, {3}, {4}});
  finish_prompt(state);
}

/// The reason why no plan is made of this chain, or nothing.
std::string refusal(const std::string& chain) {
  try {
    KvPlan plan(parse_chain(chain), profile());
    return {};
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::usage) << error.what();
    return error.what();
  }
}

/// Every stage, whether a plan takes it alone or not.
class AnyKvStage : public ::testing::TestWithParam<std::string> {};

/// Plans, each on a small random decoder.
class KvPlanContract : public ::testing::TestWithParam<std::string> {
 protected:
  [[nodiscard]] State start(std::int64_t B = 1) const {
    auto state = tiny_.model->start(B);
    use_plan(state, plan_);
    return state;
  }
  [[nodiscard]] at::Tensor run(const at::Tensor& ids, State& state) const {
    return tiny_.logits(ids, state);
  }
  [[nodiscard]] bool evicts() const { return !plan_->evict().empty(); }

  const c10::InferenceMode inference_;
  const check::TinyModel tiny_{check::kTinyDecoder};
  std::shared_ptr<const KvPlan> plan_ =
      std::make_shared<KvPlan>(parse_chain(GetParam()), profile());
};

/// Of them those that drop entries.
class EvictingPlanContract : public KvPlanContract {};

/// Stages that drop entries, alone.
class EvictStageContract : public ::testing::TestWithParam<std::string> {
 protected:
  /// What the stage keeps of entries that came as `indices` when all of them came just now.
  [[nodiscard]] std::vector<std::int64_t> keep(const std::vector<std::int64_t>& indices,
                                               std::int64_t seen) {
    std::vector<std::int64_t> out;
    const auto n = static_cast<std::int64_t>(indices.size());
    const auto due = stage().due({seen, n, stage().phase() == KvPhase::prefill_end});
    std::vector<float> scores;
    for (const auto index : indices)
      scores.push_back(
          static_cast<float>(Generator(7).split(static_cast<std::uint64_t>(index)).uniform()));
    if (!due || n <= due->limit) {
      for (std::int64_t i = 0; i < n; ++i) out.push_back(i);
    } else {
      stage().keep({0, 0, 0, indices, indices}, scores, due->each, out);
    }
    return out;
  }
  [[nodiscard]] const EvictStage& stage() const { return dynamic_cast<const EvictStage&>(*stage_); }
  std::unique_ptr<KvStage> stage_ = registry().make<KvStage>(GetParam());
};

TEST_P(AnyKvStage, APlanTakesItOrSaysWhyNot) {
  const auto stage = parse_stage(GetParam());
  const auto role = registry().make<KvStage>(stage)->role();
  const auto why_not = refusal(GetParam());
  if (why_not.empty()) {
    EXPECT_TRUE(role == KvRole::evict || role == KvRole::encode || role == KvRole::retrieve);
    return;
  }
  EXPECT_TRUE(why_not.starts_with("kv: '" + stage.name + "'")) << why_not;
  EXPECT_GT(why_not.size(), 40u) << "a sentence: " << why_not;
  EXPECT_EQ(why_not.find('\n'), std::string::npos);
}

TEST_P(AnyKvStage, ItsSpecPrintsAndParsesBack) {
  const auto stage = parse_stage(GetParam());
  const auto& component = registry().find(KvStage::kKind, stage.name);
  const auto text = print(component.canonicalize(stage));
  EXPECT_EQ(print(component.canonicalize(parse_stage(text))), text);
}

TEST_P(AnyKvStage, SomePlanTakesIt) {
  if (GetParam() == "demanding") return;
  ASSERT_FALSE(GetParam() != "keep" && GetParam() != "threshold" && chains_of(GetParam()).empty());
  for (const auto& chain : chains_of(GetParam())) EXPECT_EQ(refusal(chain), "") << chain;
}

TEST_P(KvPlanContract, APlanPrintsCanonicallyAndParsesBack) {
  const auto text = print(plan_->chain());
  EXPECT_EQ(print(KvPlan(parse_chain(text)).chain()), text);
}

TEST_P(EvictStageContract, KeepsSortedPlacesAndNoMoreThanItDeclares) {
  std::vector<std::int64_t> indices;
  Generator generator(3);
  for (std::int64_t next = 0, round = 0; round < 60; ++round) {
    for (auto n = 2 + generator.next() % 40; n > 0; --n) indices.push_back(next++);
    const auto kept = keep(indices, next);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      ASSERT_GE(kept[i], i ? kept[i - 1] + 1 : 0);
      ASSERT_LT(kept[i], static_cast<std::int64_t>(indices.size()));
    }
    if (const auto most = stage().max_entries()) {
      ASSERT_LE(static_cast<std::int64_t>(kept.size()), *most);
      ASSERT_GE(kept.size(), 1u) << "a token always sees itself afterwards";
    }
    std::vector<std::int64_t> left;
    for (auto i : kept) left.push_back(indices[static_cast<std::size_t>(i)]);
    indices = std::move(left);
    EXPECT_EQ(keep(indices, next).size(), indices.size()) << "what was kept a moment ago stays";
  }
}

TEST_P(KvPlanContract, ABudgetAboveTheLengthEqualsFull) {
  // The longest text of which nothing is dropped; encoding stages leave the newest page as it is.
  std::int64_t T = 60;
  if (evicts()) {
    for (; T > 0; --T) {
      auto state = start();
      const auto ids = check::random_ids(1, T, 50, 4);
      (void)run(ids, state);
      end_prompt(tiny_, state, ids);
      if (kv_usage(state).kept == static_cast<double>(T)) break;
    }
  }
  ASSERT_GE(T, 1);
  const auto ids = check::random_ids(2, T, 50, 4);
  auto full = tiny_.model->start(2), state = start(2);
  EXPECT_TRUE(check::close(run(ids, state), run(ids, full), 1e-5));
  finish_prompt(state);
  EXPECT_EQ(kv_usage(state).kept, T);
}

TEST_P(KvPlanContract, EntriesNeverExceedTheDeclaredMost) {
  auto state = start(2);
  const auto ids = check::random_ids(2, 700, 50, 5);
  std::int64_t at = 0;
  for (const std::int64_t n : {1, 1, 70, 3, 64, 128, 1, 5, 200, 2, 1, 99, 125}) {
    (void)run(ids.narrow(1, at, n), state);
    at += n;
    for (std::int64_t row = 0; row < 2; ++row) {
      const auto usage = kv_usage(state, row);
      EXPECT_EQ(usage.seen, at);
      EXPECT_LE(usage.kept, plan_->max_entries().value_or(at)) << "after " << at;
      EXPECT_GE(usage.kept, 1) << "after " << at;
    }
  }
}

TEST_P(KvPlanContract, WhatIsDroppedIsFreed) {
  if (!evicts() && !plan_->codec()) return;  // nothing is
  auto state = start();
  const auto ids = check::random_ids(1, 640, 50, 5);
  for (std::int64_t t = 0; t < 640; t += t < 512 ? 64 : 1)
    (void)run(ids.narrow(1, t, t < 512 ? 64 : 1), state);
  const auto usage = kv_usage(state);
  const std::int64_t entry = 2 * 8 * 4,
                     heads = 2 * 2;  // bytes of an entry in f32, heads of both layers
  // Pages are filled at least by half, the last few aside.
  EXPECT_LE(usage.bytes, static_cast<std::int64_t>((2 * usage.kept + 3 * 64) *
                                                   static_cast<double>(heads * entry)));
  EXPECT_LE(usage.bytes, plan_->codec() ? 640 * heads * entry / 2 : 640 * heads * entry)
      << "encoded pages are small";
}

TEST_P(EvictingPlanContract, ATokenSeesTheOnesRightBeforeItWhateverTheChunk) {
  // The last tokens but one of a long chunk lie behind what the stage will keep; they must see themselves nonetheless.
  const auto ids = check::random_ids(1, 300, 50, 6);
  auto state = start(), full = tiny_.model->start(1);
  EXPECT_TRUE(check::identical(run(ids, state), run(ids, full)))
      << "the first chunk attends whole, then entries are dropped";
}

TEST_P(KvPlanContract, EqualChunksGiveEqualLogitsInAnyCompany) {
  const auto ids = check::random_ids(3, 150, 50, 7);
  auto together = start(3);
  std::vector<at::Tensor> outs;
  for (std::int64_t t = 0; t < 150; t += 50) outs.push_back(run(ids.narrow(1, t, 50), together));
  const auto all = at::cat(outs, 1);
  for (std::int64_t b = 0; b < 3; ++b) {
    auto alone = start();
    for (std::int64_t t = 0; t < 150; t += 50) {
      EXPECT_TRUE(check::close(run(ids.narrow(0, b, 1).narrow(1, t, 50), alone),
                               all.narrow(0, b, 1).narrow(1, t, 50), 1e-5));
    }
  }
}

TEST_P(KvPlanContract, SavedAndLoadedItGoesOnTheSame) {
  const auto ids = check::random_ids(2, 260, 50, 8);
  auto state = start(2);
  (void)run(ids.narrow(1, 0, 130), state);
  (void)run(ids.narrow(1, 130, 60), state);
  const auto bytes = state.save();
  EXPECT_EQ(static_cast<std::int64_t>(bytes.size()), state.bytes());
  auto loaded = State::load(bytes);
  if (!plan_->needs().head_profile.empty()) use_plan(loaded, plan_);
  for (const auto* store : kv_stores(std::as_const(loaded))) EXPECT_EQ(store->seen(0), 190);
  for (std::int64_t t = 190; t < 260;
       t += 35) {  // the plan, too, comes back: entries go on being dropped
    EXPECT_TRUE(
        check::identical(run(ids.narrow(1, t, 35), loaded), run(ids.narrow(1, t, 35), state)));
  }
  EXPECT_EQ(kv_usage(loaded).kept, kv_usage(state).kept);
}

TEST_P(KvPlanContract, AForkLeavesItsParentAlone) {
  const auto ids = check::random_ids(2, 200, 50, 9), others = check::random_ids(2, 200, 50, 10);
  auto parent = start(2);
  (void)run(ids.narrow(1, 0, 100), parent);
  const auto bytes = parent.save();
  auto child = parent.fork(), same = parent.fork();
  (void)run(others.narrow(1, 0, 90), child);
  EXPECT_EQ(parent.save(), bytes);
  const auto next = ids.narrow(1, 100, 90);
  EXPECT_TRUE(check::identical(run(next, parent), run(next, same)));
}

TEST_P(KvPlanContract, RewindsOrSaysThatItCannot) {
  const auto ids = check::random_ids(1, 100, 50, 11);
  auto state = start(), shorter = start();
  (void)run(ids, state);
  (void)run(ids.narrow(1, 0, 90), shorter);
  const auto bytes = state.save();
  try {
    state.rewind(10);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::unsupported) << error.what();
    EXPECT_EQ(state.save(), bytes) << "a refusal changes nothing";
    EXPECT_LT(kv_usage(state).kept, 100) << "only what was dropped is a reason";
    return;
  }
  EXPECT_EQ(state.positions, shorter.positions);
  EXPECT_TRUE(
      check::close(run(ids.narrow(1, 90, 10), state), run(ids.narrow(1, 90, 10), shorter), 1e-5));
}

TEST_P(KvPlanContract, RowsOfDifferentLengthsJoin) {
  const auto ids = check::random_ids(2, 200, 50, 12);
  auto a = start(), b = start();
  (void)run(ids.narrow(0, 0, 1).narrow(1, 0, 150), a);
  (void)run(ids.narrow(0, 1, 1).narrow(1, 0, 20), b);
  auto joined = State::concat({&a, &b});
  const auto next = check::random_ids(2, 30, 50, 13);
  const auto out = run(next, joined);
  EXPECT_TRUE(check::close(out.narrow(0, 0, 1), run(next.narrow(0, 0, 1), a), 1e-5));
  EXPECT_TRUE(check::close(out.narrow(0, 1, 1), run(next.narrow(0, 1, 1), b), 1e-5));
}

/// All chains of single stages.
std::vector<std::string> single_chains() {
  std::vector<std::string> out;
  for (const auto& spec : stage_specs()) {
    if (spec == "demanding") continue;
    for (auto& chain : chains_of(spec)) out.push_back(std::move(chain));
  }
  return out;
}

/// Pairs of chains that compose to one plan; most are refused, with a reason.
std::vector<std::string> pairs() {
  std::vector<std::string> out;
  const auto chains = single_chains();
  for (const auto& first : chains) {
    for (const auto& second : chains) {
      if (first.find("ratio") != std::string::npos || second.find("ratio") != std::string::npos)
        continue;  // the same stages stand in other chains
      if (auto chain = first + " | " + second; refusal(chain).empty())
        out.push_back(std::move(chain));
    }
  }
  return out;
}

std::vector<std::string> evicting(std::vector<std::string> chains) {
  std::erase_if(chains, [](const auto& chain) {
    return KvPlan(parse_chain(chain), profile()).evict().empty();
  });
  return chains;
}

std::vector<std::string> evict_stages() {
  auto out = stage_specs();
  std::erase_if(out, [](const auto& spec) {
    return registry().make<KvStage>(spec)->role() != KvRole::evict;
  });
  return out;
}

/// What any two stages that compose must do together: hold no more than they say, go on after a load as if nothing had
/// happened, and leave others alone.
TEST(EveryPairOfKvStages, ComposesOrIsRefused) {
  const c10::InferenceMode inference;
  const check::TinyModel tiny(check::kTinyDecoder);
  const auto ids = check::random_ids(1, 240, 50, 21);
  const auto chains = pairs();
  EXPECT_GT(chains.size(), 20u);
  for (const auto& chain : chains) {
    SCOPED_TRACE(chain);
    const auto plan = std::make_shared<KvPlan>(parse_chain(chain), profile());
    auto state = tiny.model->start(1);
    use_plan(state, plan);
    (void)tiny.logits(ids.narrow(1, 0, 130), state);
    end_prompt(tiny, state, ids.narrow(1, 0, 130));
    for (std::int64_t t = 130; t < 150; ++t) (void)tiny.logits(ids.narrow(1, t, 1), state);
    if (const auto most = plan->max_entries()) {
      EXPECT_LE(kv_usage(state).kept, *most);
    }
    const auto bytes = state.save();
    auto loaded = State::load(bytes);
    use_plan(loaded, plan);
    auto child = state.fork();
    (void)tiny.logits(ids.narrow(1, 0, 70), child);
    EXPECT_EQ(state.save(), bytes);
    const auto next = ids.narrow(1, 150, 90);
    EXPECT_TRUE(check::identical(tiny.logits(next, loaded), tiny.logits(next, state)));
    EXPECT_TRUE(at::isfinite(tiny.logits(ids.narrow(1, 0, 1), state)).all().item<bool>());
  }
}

std::string stage_name(const ::testing::TestParamInfo<std::string>& info) {
  return check::test_name(info.param);
}

INSTANTIATE_TEST_SUITE_P(EveryStage, AnyKvStage, ::testing::ValuesIn(stage_specs()), stage_name);
INSTANTIATE_TEST_SUITE_P(EveryStage, KvPlanContract, ::testing::ValuesIn(single_chains()),
                         stage_name);
INSTANTIATE_TEST_SUITE_P(EveryStage, EvictingPlanContract,
                         ::testing::ValuesIn(evicting(single_chains())), stage_name);
INSTANTIATE_TEST_SUITE_P(EveryStage, EvictStageContract, ::testing::ValuesIn(evict_stages()),
                         stage_name);

}  // namespace
}  // namespace mneme
