#include "mneme/train/packing.h"

#include <ATen/ATen.h>

#include "training_fixture.h"

namespace mneme {
namespace {

at::Tensor longs(const std::vector<std::int64_t>& values) { return at::tensor(values, at::kLong); }

TEST(Pack, OneExample) {
  Example example;
  example.ids = {5, 6, 7, 8};
  example.weights = {0, 2, 1, 0};
  const auto packed = pack({&example}, 0);
  EXPECT_TRUE(at::equal(packed.batch.ids, longs({5, 6, 7, 8}).unsqueeze(0)));
  EXPECT_TRUE(at::equal(packed.batch.positions, longs({0, 1, 2, 3}).unsqueeze(0)));
  EXPECT_TRUE(packed.batch.lengths.empty());
  EXPECT_FALSE(packed.batch.segments.defined());
  EXPECT_FALSE(packed.batch.pattern.by_segment);
  EXPECT_TRUE(at::equal(packed.batch.chosen, longs({1, 2})));
  EXPECT_TRUE(at::equal(packed.targets, longs({7, 8})));
  EXPECT_TRUE(at::equal(packed.weights, at::tensor({2.0f, 1.0f})));
  EXPECT_EQ(packed.weight, 3);
  EXPECT_EQ(packed.tokens, 4);
}

/// Five, three and two tokens: the short ones share the second row, each in a segment of its own.
TEST(Pack, ShortExamplesShareARow) {
  Example five, three, two;
  five.ids = {1, 2, 3, 4, 5};
  five.weights = {0, 0, 0, 1, 0};
  three.ids = {6, 7, 8};
  three.weights = {1, 0, 0};
  two.ids = {9, 10};
  two.weights = {1, 0};
  two.positions = {30, 31};
  const auto packed = pack({&two, &five, &three}, 0);
  EXPECT_TRUE(
      at::equal(packed.batch.ids, at::stack({longs({1, 2, 3, 4, 5}), longs({6, 7, 8, 9, 10})})));
  EXPECT_TRUE(at::equal(packed.batch.positions,
                        at::stack({longs({0, 1, 2, 3, 4}), longs({0, 1, 2, 30, 31})})));
  EXPECT_TRUE(at::equal(packed.batch.segments,
                        at::stack({longs({0, 0, 0, 0, 0}), longs({0, 0, 0, 1, 1})})));
  EXPECT_TRUE(at::equal(packed.batch.segment_sees, at::eye(2, at::kBool).expand({2, 2, 2})));
  EXPECT_TRUE(packed.batch.pattern.by_segment && packed.batch.pattern.causal);
  EXPECT_TRUE(at::equal(packed.batch.chosen, longs({3, 5, 8})));
  EXPECT_TRUE(at::equal(packed.targets, longs({5, 7, 10})));
  EXPECT_EQ(packed.tokens, 10);

  const auto apart = pack({&two, &five, &three}, 0, false);
  EXPECT_EQ(apart.batch.ids.sizes(), (at::IntArrayRef{3, 5}));
  EXPECT_EQ(apart.batch.lengths, (std::vector<std::int64_t>{2, 5, 3}));
  EXPECT_FALSE(apart.batch.segments.defined());
}

TEST(Pack, SegmentsAreKeptApartByTheirPlace) {
  const auto a = check::segmented_example(8, 1), b = check::segmented_example(8, 2);
  const auto longest = check::random_example(16, 3);
  const auto packed = pack({&longest, &a, &b}, 0);
  ASSERT_EQ(packed.batch.ids.size(0), 2);
  const auto& sees = packed.batch.segment_sees;
  ASSERT_EQ(sees.sizes(), (at::IntArrayRef{2, 8, 8}));
  const auto block = at::tensor(std::vector<float>{1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1})
                         .view({4, 4})
                         .to(at::kBool);
  EXPECT_TRUE(at::equal(sees[1].narrow(0, 0, 4).narrow(1, 0, 4), block));
  EXPECT_TRUE(at::equal(sees[1].narrow(0, 4, 4).narrow(1, 4, 4), block));
  EXPECT_FALSE(sees[1].narrow(0, 0, 4).narrow(1, 4, 4).any().item<bool>());
  EXPECT_FALSE(sees[1].narrow(0, 4, 4).narrow(1, 0, 4).any().item<bool>());
  EXPECT_EQ(packed.batch.segments[1].max().item<std::int64_t>(), 7);
}

TEST(Pack, RefusesWhatContradictsItself) {
  const auto good = check::segmented_example(8, 1);
  (void)pack({&good}, 0);
  const auto refused = [&](const std::string& why, auto change, std::int64_t context = 0) {
    auto example = good;
    change(example);
    check::expect_error(Errc::invalid, why, [&] { (void)pack({&example}, context); });
  };
  refused("no tokens", [](Example& e) { e = {}; });
  refused("8 tokens and 7 weights", [](Example& e) { e.weights.pop_back(); });
  refused("last token", [](Example& e) { e.weights.back() = 1; });
  refused("weight -1", [](Example& e) { e.weights[0] = -1; });
  refused("weight nan", [](Example& e) { e.weights[0] = std::nanf(""); });
  refused("8 tokens and 9 positions", [](Example& e) { e.positions.push_back(9); });
  refused("position -1", [](Example& e) { e.positions[2] = -1; });
  refused("position 7 where the model's context is 7", [](Example&) {}, 7);
  refused("8 tokens and 7 segments", [](Example& e) { e.segments.pop_back(); });
  refused("segment 4 of 4", [](Example& e) { e.segments[0] = 4; });
  refused("segment -1 of 4", [](Example& e) { e.segments[0] = -1; });
  refused("sees segment 4 of 4", [](Example& e) { e.sees[3][0] = 4; });
  refused("not where they are", [](Example& e) { e.segments.clear(); });
  check::expect_error(Errc::invalid, "no examples", [] { (void)pack({}, 0); });
}

/// Whatever the lengths: every example is there once, in one row, and rows are never longer than the longest.
TEST(Pack, HoldsEveryExampleOnce) {
  Generator generator(4);
  for (int round = 0; round < 50; ++round) {
    std::vector<Example> examples;
    const auto count = 1 + generator.next() % 12;
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto T = 4 + generator.next() % 30;
      examples.push_back(generator.next() % 2 ? check::random_example(T, generator.next())
                                              : check::segmented_example(T, generator.next()));
    }
    std::vector<const Example*> all;
    std::int64_t tokens = 0, longest = 0, chosen = 0;
    for (const auto& example : examples) {
      all.push_back(&example);
      tokens += example.tokens();
      longest = std::max(longest, example.tokens());
      for (const auto weight : example.weights) chosen += weight != 0;
    }
    const auto packed = pack(all, 0);
    EXPECT_EQ(packed.tokens, tokens);
    EXPECT_EQ(packed.batch.ids.size(1), longest);
    EXPECT_LE(packed.batch.ids.size(0), static_cast<std::int64_t>(count));
    EXPECT_EQ(packed.targets.numel(), chosen);
    EXPECT_TRUE(at::equal(packed.batch.ids.flatten().index_select(0, packed.batch.chosen + 1),
                          packed.targets));
  }
}

}  // namespace
}  // namespace mneme
