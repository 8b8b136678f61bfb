// Plans and the stages that the library has; what every stage does is in contracts/kv_stage_contract.cpp.
#include "mneme/kv/plan.h"

#include <c10/core/GradMode.h>

#include "../tensor_check.h"
#include "../tiny_models.h"
#include <algorithm>
#include <gtest/gtest.h>

namespace mneme {
namespace {

std::vector<std::int64_t> kept(const std::string& spec, const std::vector<std::int64_t>& indices) {
  const auto stage = registry().make<KvStage>(spec);
  std::vector<std::int64_t> out;
  dynamic_cast<const EvictStage&>(*stage).keep({0, 0, 0, indices, indices}, {}, 0, out);
  return out;
}

TEST(Window, AWorkedCase) {
  EXPECT_EQ(kept("window(sinks=1, size=2)", {0, 1, 2, 3, 4}), (std::vector<std::int64_t>{0, 3, 4}));
  EXPECT_EQ(kept("window(sinks=1, size=2)", {0, 3, 4, 5}), (std::vector<std::int64_t>{0, 2, 3}))
      << "entry 3 goes, the sink stays";
  EXPECT_EQ(kept("window(sinks=2, size=2)", {5, 6, 7}), (std::vector<std::int64_t>{1, 2}))
      << "the text's first tokens are sinks, not the first that are left";
  EXPECT_EQ(kept("window(sinks=4, size=8)", {0, 1, 2}), (std::vector<std::int64_t>{0, 1, 2}));
  EXPECT_EQ(kept("window(sinks=0, size=1)", {}), (std::vector<std::int64_t>{}));
}

TEST(Window, KeepsTheSameWhateverTheChunks) {
  Generator generator(5);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::int64_t> indices;
    std::int64_t next = 0;
    while (next < 100) {
      for (auto n = 1 + generator.next() % 30; n > 0 && next < 100; --n) indices.push_back(next++);
      std::vector<std::int64_t> left;
      for (auto i : kept("window(sinks=3, size=11)", indices))
        left.push_back(indices[static_cast<std::size_t>(i)]);
      indices = left;
    }
    EXPECT_EQ(indices,
              (std::vector<std::int64_t>{0, 1, 2, 89, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99}));
  }
}

TEST(KvPlan, SaysWhatItHolds) {
  const KvPlan plan(parse_chain("window(size=64) | every_other(recent=8) | quantize(bits=4)"));
  EXPECT_EQ(plan.max_entries(), 68);
  EXPECT_EQ(plan.codec_name(), "q4");
  EXPECT_EQ(plan.evict().size(), 2u);
  EXPECT_EQ(print(plan.chain()), "window(size=64) | every_other(recent=8) | quantize(bits=4)");
  EXPECT_EQ(KvPlan(parse_chain("window(size=64) | window(size=8, sinks=0)")).max_entries(), 8);
  EXPECT_EQ(KvPlan(parse_chain("quantize")).max_entries(), std::nullopt);
  EXPECT_EQ(KvPlan(parse_chain("quantize")).codec_name(), "q8");
  const KvPlan none(Chain{});
  EXPECT_EQ(none.codec(), nullptr);
  EXPECT_TRUE(none.evict().empty());
}

TEST(Store, NamesACodecAndNoOther) {
  for (const std::string type : {"f32", "f16", "bf16", "q8", "q4"}) {
    const KvPlan plan(parse_chain("window(size=64) | store(" + type + ")"));
    ASSERT_NE(plan.codec(), nullptr);
    EXPECT_EQ(plan.codec_name(), type);
  }
  EXPECT_EQ(KvPlan(parse_chain("store(q8)")).codec_name(),
            KvPlan(parse_chain("quantize(bits=8)")).codec_name());
  EXPECT_EQ(KvPlan(parse_chain("store(q4)")).codec_name(),
            KvPlan(parse_chain("quantize(bits=4)")).codec_name());
  EXPECT_EQ(print(KvPlan(parse_chain("store(q8)")).chain()), "store(type=q8)");
  check::expect_error(Errc::usage, "f32, f16, bf16, q8", [] { KvPlan(parse_chain("store(f8)")); });
}

TEST(Store, LogitsAndBytesAreThoseOfTheType) {
  const check::TinyModel tiny(check::kTinyDecoder);
  const c10::NoGradGuard no_gradient;
  const auto ids = check::random_ids(1, 130, 50, 1), next = check::random_ids(1, 1, 50, 2);
  std::int64_t bytes = 0;
  const auto logits = [&](const std::string& kv) {
    auto state = tiny.model->start(1);
    use_plan(state, std::make_shared<KvPlan>(parse_chain(kv)));
    (void)tiny.logits(ids, state);
    bytes = kv_usage(state).bytes;
    return tiny.logits(next, state);
  };
  const auto q8 = logits("store(q8)");
  const auto q8_bytes = bytes;
  EXPECT_TRUE(check::identical(q8, logits("quantize(bits=8)")));
  EXPECT_EQ(bytes, q8_bytes);
  const auto f32 = logits("store(f32)");
  const auto f32_bytes = bytes;
  const std::pair<const char*, double> narrower[] = {{"store(f16)", 2e-3}, {"store(bf16)", 2e-2}};
  for (const auto& [kv, tolerance] : narrower) {
    const auto got = logits(kv);
    EXPECT_TRUE(check::close(got, f32, tolerance)) << kv;
    EXPECT_FALSE(check::identical(got, f32)) << kv;
    EXPECT_LT(bytes, f32_bytes) << kv;
    EXPECT_GT(bytes, q8_bytes) << kv;
  }
}

TEST(KvPlan, RefusesBadOptions) {
  check::expect_error(Errc::usage, "4 or 8", [] { KvPlan(parse_chain("quantize(bits=5)")); });
  check::expect_error(Errc::usage, "from 1 to", [] { KvPlan(parse_chain("window(size=0)")); });
  check::expect_error(Errc::usage, "did you mean 'sinks'",
                      [] { KvPlan(parse_chain("window(sink=2)")); });
}

TEST(KvUsage, CountsLayersRowsAndBytes) {
  const check::TinyModel tiny(check::kTinyDecoder);
  const c10::NoGradGuard no_gradient;
  auto state = tiny.model->start(2);
  use_plan(state, std::make_shared<KvPlan>(parse_chain("window(sinks=1, size=9)")));
  (void)tiny.logits(check::random_ids(2, 30, 50, 1), state, {30, 5});
  EXPECT_EQ(kv_stores(state).size(), 2u);
  const auto usage = kv_usage(state, 0), other = kv_usage(state, 1);
  EXPECT_EQ(usage.seen, 30);
  EXPECT_EQ(usage.kept, 10);
  EXPECT_EQ(other.seen, 5);
  EXPECT_EQ(other.kept, 5);
  EXPECT_EQ(usage.bytes, other.bytes) << "of all rows";
  EXPECT_GT(usage.bytes, 0);
}

/// "layers.10" comes after "layers.9".
TEST(KvStores, ComeInTheOrderOfTheLayers) {
  const check::TinyModel tiny(
      "decoder(vocabulary=50, model=16, layers=11, context=0, mixer=softmax(heads=2), "
      "feed_forward=glu(hidden=8))");
  auto state = tiny.model->start(1);
  const auto stores = kv_stores(state);
  ASSERT_EQ(stores.size(), 11u);
  for (std::size_t i = 0; i < 11; ++i)
    EXPECT_EQ(stores[i],
              &dynamic_cast<KvStore&>(state.child("layers." + std::to_string(i)).store("kv")));
}

}  // namespace
}  // namespace mneme
