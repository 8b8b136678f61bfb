#include "mneme/train/batch_order.h"

#include "mneme/core/registry.h"

#include "training_fixture.h"
#include <map>
#include <set>

namespace mneme {
namespace {

check::FixedTask examples_of(std::int64_t count) {
  std::vector<Example> examples;
  Generator generator(3);
  for (std::int64_t i = 0; i < count; ++i) {
    examples.push_back(
        check::random_example(2 + generator.next() % 40, static_cast<std::uint64_t>(i)));
  }
  return check::FixedTask(std::move(examples));
}

std::vector<std::vector<std::int64_t>> indices_of_pass(BatchOrder& order) {
  std::vector<std::vector<std::int64_t>> out;
  const auto pass = order.place().pass;
  while (order.place().pass == pass) {
    out.emplace_back();
    for (const auto& drawn : order.next()) {
      EXPECT_EQ(drawn.pass, pass);
      out.back().push_back(drawn.index);
    }
  }
  return out;
}

TEST(BatchOrder, EveryExampleOnceAPass) {
  for (const BatchOrder::Size size :
       {BatchOrder::Size{1, 0}, {7, 0}, {8, 0}, {1000, 0}, {8, 100}}) {
    const auto task = examples_of(611);
    BatchOrder order(task, size, 1);
    std::vector<std::vector<std::int64_t>> before;
    for (int pass = 0; pass < 2; ++pass) {
      const auto batches = indices_of_pass(order);
      std::multiset<std::int64_t> seen;
      for (const auto& batch : batches) {
        EXPECT_FALSE(batch.empty());
        if (size.tokens == 0) {
          EXPECT_LE(static_cast<std::int64_t>(batch.size()), size.examples);
        }
        seen.insert(batch.begin(), batch.end());
      }
      EXPECT_EQ(seen.size(), 611u);
      EXPECT_EQ(std::set<std::int64_t>(seen.begin(), seen.end()).size(), 611u);
      EXPECT_NE(batches, before) << "passes have orders of their own";
      before = batches;
    }
  }
}

TEST(BatchOrder, FollowsFromTheSeed) {
  const auto task = examples_of(100);
  BatchOrder a(task, {8, 0}, 1), b(task, {8, 0}, 1), c(task, {8, 0}, 2);
  const auto first = indices_of_pass(a);
  EXPECT_EQ(first, indices_of_pass(b));
  EXPECT_NE(first, indices_of_pass(c));
}

TEST(BatchOrder, GoesOnFromAnyPlace) {
  const auto task = registry().make<Task>("repeat(examples=300)", Task::Setup{});
  const BatchOrder::Size size{4, 0};  // 128 examples a window: three of them
  BatchOrder whole(*task, size, 5);
  std::vector<BatchOrder::Place> places;
  std::vector<std::vector<DrawnExample>> batches;
  while (whole.place().pass < 2) {
    places.push_back(whole.place());
    batches.push_back(whole.next());
  }
  ASSERT_EQ(batches.size(), 150u);
  for (const std::size_t at : {0, 1, 31, 32, 74, 75, 100, 149}) {
    BatchOrder other(*task, size, 5);
    other.go_to(places[at]);
    for (auto i = at; i < batches.size(); ++i) {
      const auto got = other.next();
      ASSERT_EQ(got.size(), batches[i].size());
      for (std::size_t j = 0; j < got.size(); ++j) {
        ASSERT_EQ(got[j].index, batches[i][j].index);
        ASSERT_EQ(got[j].content.ids, batches[i][j].content.ids) << "drawn anew, and the same";
      }
    }
  }
}

/// What a pass draws depends on the pass; within one it does not depend on the order of asking.
TEST(BatchOrder, ExamplesAreDrawnAnewInEveryPass) {
  const auto task = registry().make<Task>("repeat(examples=30)", Task::Setup{});
  std::map<std::int64_t, std::vector<std::int32_t>> by_index[3];
  BatchOrder small(*task, {3, 0}, 5), large(*task, {30, 0}, 5);
  for (int pass = 0; pass < 2; ++pass) {
    while (small.place().pass == pass) {
      for (const auto& drawn : small.next()) by_index[pass][drawn.index] = drawn.content.ids;
    }
  }
  for (const auto& drawn : large.next()) by_index[2][drawn.index] = drawn.content.ids;
  EXPECT_NE(by_index[0], by_index[1]);
  EXPECT_EQ(by_index[0], by_index[2]);
}

TEST(BatchOrder, PaddingIsLittle) {
  const auto task = examples_of(512);
  BatchOrder order(task, {8, 0}, 1), by_tokens(task, {8, 160}, 1);
  std::int64_t tokens = 0, padded = 0;
  while (order.place().pass == 0) {
    const auto batch = order.next();
    for (const auto& drawn : batch) tokens += drawn.content.tokens();
    padded += batch.back().content.tokens() * static_cast<std::int64_t>(batch.size());
  }
  EXPECT_LE(static_cast<double>(padded), 1.05 * static_cast<double>(tokens));
  while (by_tokens.place().pass == 0) {
    const auto batch = by_tokens.next();
    EXPECT_LE(batch.back().content.tokens() * static_cast<std::int64_t>(batch.size()), 160);
  }
}

TEST(BatchOrder, RefusesWhatIsNoPlace) {
  const auto task = examples_of(10);
  check::expect_error(Errc::invalid, "no training examples",
                      [] { BatchOrder(check::FixedTask({}), {8, 0}, 1); });
  for (const BatchOrder::Place place :
       {BatchOrder::Place{0, 0, 2}, {0, 1, 0}, {-1, 0, 0}, {0, 0, -1}}) {
    BatchOrder order(task, {8, 0}, 1);
    order.go_to(place);
    check::expect_error(Errc::invalid, "does not exist", [&] { (void)order.next(); });
  }
}

}  // namespace
}  // namespace mneme
