// What every KV stage of the registry must do: alone in a plan, on a small random decoder.
#include "mneme/kv/plan.h"
#include "mneme/mixers/kv_store.h"

#include <ATen/ATen.h>
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

/// The reason why no plan takes this stage alone, or nothing.
std::string refusal(const std::string& spec) {
  try {
    KvPlan plan(parse_chain(spec));
    return {};
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::usage) << error.what();
    return error.what();
  }
}

/// Every stage, whether a plan takes it or not.
class AnyKvStage : public ::testing::TestWithParam<std::string> {};

/// The stages that a plan takes.
class KvStageContract : public ::testing::TestWithParam<std::string> {
 protected:
  [[nodiscard]] State start(std::int64_t B = 1) const {
    auto state = tiny_.model->start(B);
    use_plan(state, plan_);
    return state;
  }
  [[nodiscard]] at::Tensor run(const at::Tensor& ids, State& state) const {
    return tiny_.logits(ids, state);
  }
  [[nodiscard]] const EvictStage* evicts() const {
    return dynamic_cast<const EvictStage*>(stage_.get());
  }
  /// What the stage keeps of entries that came as `indices`.
  [[nodiscard]] std::vector<std::int64_t> keep(const std::vector<std::int64_t>& indices) const {
    std::vector<std::int64_t> out;
    evicts()->keep({0, 0, 0, indices, indices}, out);
    return out;
  }
  static std::vector<std::int64_t> count_to(std::int64_t n) {
    std::vector<std::int64_t> out(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) out[static_cast<std::size_t>(i)] = i;
    return out;
  }

  const c10::InferenceMode inference_;
  const check::TinyModel tiny_{check::kTinyDecoder};
  std::unique_ptr<KvStage> stage_ = registry().make<KvStage>(GetParam());
  std::shared_ptr<const KvPlan> plan_ = std::make_shared<KvPlan>(parse_chain(GetParam()));
};

/// Of them those that drop entries.
class EvictStageContract : public KvStageContract {};

TEST_P(AnyKvStage, APlanTakesItOrSaysWhyNot) {
  const auto stage = parse_stage(GetParam());
  const auto role = registry().make<KvStage>(stage)->role();
  const auto why_not = refusal(GetParam());
  if (why_not.empty()) {
    EXPECT_TRUE(role == KvRole::evict || role == KvRole::encode);
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

TEST_P(KvStageContract, APlanPrintsCanonicallyAndParsesBack) {
  const auto text = print(plan_->chain());
  EXPECT_EQ(text, print(registry()
                            .find(KvStage::kKind, parse_stage(GetParam()).name)
                            .canonicalize(parse_stage(GetParam()))));
  EXPECT_EQ(print(KvPlan(parse_chain(text)).chain()), text);
}

TEST_P(EvictStageContract, KeepsSortedPlacesAndNoMoreThanItDeclares) {
  std::vector<std::int64_t> indices;
  Generator generator(3);
  for (std::int64_t next = 0, round = 0; round < 60; ++round) {
    for (auto n = 1 + generator.next() % 40; n > 0; --n) indices.push_back(next++);
    const auto kept = keep(indices);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      ASSERT_GE(kept[i], i ? kept[i - 1] + 1 : 0);
      ASSERT_LT(kept[i], static_cast<std::int64_t>(indices.size()));
    }
    if (const auto most = stage_->max_entries()) {
      ASSERT_LE(static_cast<std::int64_t>(kept.size()), *most);
      ASSERT_GE(kept.size(), 1u) << "a token always sees itself afterwards";
    }
    std::vector<std::int64_t> left;
    for (auto i : kept) left.push_back(indices[static_cast<std::size_t>(i)]);
    indices = std::move(left);
    EXPECT_EQ(keep(indices).size(), indices.size()) << "what was kept a moment ago stays";
  }
}

TEST_P(KvStageContract, ABudgetAboveTheLengthEqualsFull) {
  // As many tokens as the stage keeps whole; encoding stages leave the newest page as it is.
  std::int64_t T = 60;
  if (evicts()) {
    for (T = 0; T < 200 && static_cast<std::int64_t>(keep(count_to(T + 1)).size()) == T + 1;) ++T;
  }
  ASSERT_GE(T, 1);
  const auto ids = check::random_ids(2, T, 50, 4);
  auto full = tiny_.model->start(2), state = start(2);
  EXPECT_TRUE(check::identical(run(ids, state), run(ids, full)));
}

TEST_P(KvStageContract, EntriesNeverExceedTheDeclaredMost) {
  auto state = start(2);
  const auto ids = check::random_ids(2, 700, 50, 5);
  std::int64_t at = 0;
  for (const std::int64_t n : {1, 1, 70, 3, 64, 128, 1, 5, 200, 2, 1, 99, 125}) {
    (void)run(ids.narrow(1, at, n), state);
    at += n;
    for (const auto* store : kv_stores(std::as_const(state))) {
      for (std::int64_t row = 0; row < 2; ++row) {
        EXPECT_EQ(store->seen(row), at);
        const auto most = plan_->max_entries().value_or(at);
        EXPECT_LE(store->kept(row), most) << "after " << at;
        EXPECT_GE(store->kept(row), evicts() ? 1 : at) << "after " << at;
      }
    }
  }
}

TEST_P(KvStageContract, WhatIsDroppedIsFreed) {
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
  EXPECT_LE(usage.bytes, evicts() ? 640 * heads * entry : 640 * heads * entry / 2)
      << "encoded pages are small";
}

TEST_P(EvictStageContract, ATokenSeesTheOnesRightBeforeItWhateverTheChunk) {
  // The last tokens but one of a long chunk lie behind what the stage will keep; they must see themselves nonetheless.
  const auto ids = check::random_ids(1, 300, 50, 6);
  auto state = start(), full = tiny_.model->start(1);
  EXPECT_TRUE(check::identical(run(ids, state), run(ids, full)))
      << "the first chunk attends whole, then entries are dropped";
}

TEST_P(KvStageContract, EqualChunksGiveEqualLogitsInAnyCompany) {
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

TEST_P(KvStageContract, SavedAndLoadedItGoesOnTheSame) {
  const auto ids = check::random_ids(2, 260, 50, 8);
  auto state = start(2);
  (void)run(ids.narrow(1, 0, 130), state);
  (void)run(ids.narrow(1, 130, 60), state);
  const auto bytes = state.save();
  EXPECT_EQ(static_cast<std::int64_t>(bytes.size()), state.bytes());
  auto loaded = State::load(bytes);
  for (const auto* store : kv_stores(std::as_const(loaded))) EXPECT_EQ(store->seen(0), 190);
  for (std::int64_t t = 190; t < 260;
       t += 35) {  // the plan, too, comes back: entries go on being dropped
    EXPECT_TRUE(
        check::identical(run(ids.narrow(1, t, 35), loaded), run(ids.narrow(1, t, 35), state)));
  }
  EXPECT_EQ(kv_usage(loaded).kept, kv_usage(state).kept);
}

TEST_P(KvStageContract, AForkLeavesItsParentAlone) {
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

TEST_P(KvStageContract, RewindsOrSaysThatItCannot) {
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

TEST_P(KvStageContract, RowsOfDifferentLengthsJoin) {
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

std::vector<std::string> accepted(bool evicting) {
  auto out = stage_specs();
  std::erase_if(out, [&](const auto& spec) {
    return !refusal(spec).empty() ||
           (evicting && registry().make<KvStage>(spec)->role() != KvRole::evict);
  });
  return out;
}
std::string stage_name(const ::testing::TestParamInfo<std::string>& info) {
  return check::test_name(info.param);
}

INSTANTIATE_TEST_SUITE_P(EveryStage, AnyKvStage, ::testing::ValuesIn(stage_specs()), stage_name);
INSTANTIATE_TEST_SUITE_P(EveryStage, KvStageContract, ::testing::ValuesIn(accepted(false)),
                         stage_name);
INSTANTIATE_TEST_SUITE_P(EveryStage, EvictStageContract, ::testing::ValuesIn(accepted(true)),
                         stage_name);

}  // namespace
}  // namespace mneme
