#include "mneme/decode/logits_stage.h"

#include "mneme/core/error.h"
#include "mneme/core/registry.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <gtest/gtest.h>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <set>

namespace mneme {
namespace {

constexpr float kNo = -std::numeric_limits<float>::infinity();

std::vector<float> changed(std::string_view chain, std::vector<float> logits,
                           const std::vector<std::int32_t>& history = {}) {
  for (const auto& stage : parse_chain(chain))
    registry().make<LogitsStage>(stage)->apply(logits, history);
  return logits;
}

std::set<std::size_t> kept(const std::vector<float>& logits) {
  std::set<std::size_t> out;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] != kNo) out.insert(i);
  }
  return out;
}

std::vector<float> random_logits(std::mt19937& random, std::size_t n, bool ties) {
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> out(n);
  for (auto& x : out) x = ties ? std::round(normal(random)) : normal(random);
  return out;
}

TEST(LogitsStages, EqualTransformers) {
  std::ifstream file("tests/decode/warpers.json");
  ASSERT_TRUE(file) << "tests run in the repository's root";
  const auto reference = nlohmann::json::parse(file);
  ASSERT_GE(reference["cases"].size(), 30u);
  for (const auto& one : reference["cases"]) {
    const auto chain = one["chain"].get<std::string>();
    const auto out = changed(chain, one["logits"].get<std::vector<float>>(),
                             one["history"].get<std::vector<std::int32_t>>());
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (one["expected"][i].is_null()) {
        EXPECT_EQ(out[i], kNo) << chain << ", token " << i;
      } else {
        EXPECT_NEAR(out[i], one["expected"][i].get<float>(), 1e-5f) << chain << ", token " << i;
      }
    }
  }
}

TEST(Temperature, DividesAndIsGreedyAtZero) {
  EXPECT_EQ(changed("temperature(0.5)", {1, -2, kNo}), (std::vector<float>{2, -4, kNo}));
  EXPECT_EQ(changed("temperature(1)", {1, -2, kNo}), (std::vector<float>{1, -2, kNo}));
  EXPECT_EQ(kept(changed("temperature(0)", {1, 3, 2, 3})), (std::set<std::size_t>{1}))
      << "the smallest id among equals";
  EXPECT_EQ(kept(changed("temperature(1e-40)", {1, 3, 2, 3})), (std::set<std::size_t>{1}))
      << "no division by nearly nothing";
}

TEST(TopK, KeepsTheLargestAndTies) {
  EXPECT_EQ(changed("top_k(2)", {1, 4, 3, 2}), (std::vector<float>{kNo, 4, 3, kNo}));
  EXPECT_EQ(kept(changed("top_k(2)", {3, 4, 3, 2, 3})), (std::set<std::size_t>{0, 1, 2, 4}));
  EXPECT_EQ(changed("top_k(0)", {1, 2}), (std::vector<float>{1, 2}));
  EXPECT_EQ(changed("top_k(5)", {1, 2}), (std::vector<float>{1, 2}));
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const auto logits = random_logits(random, 1 + random() % 60, round % 2);
    const auto k = 1 + random() % 60;
    auto sorted = logits;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const float least = sorted[std::min(k, sorted.size()) - 1];
    std::set<std::size_t> expected;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] >= least) expected.insert(i);
    }
    ASSERT_EQ(kept(changed("top_k(" + std::to_string(k) + ")", logits)), expected);
  }
}

TEST(TopP, WorkedByHand) {
  // probabilities 1/2, 1/4, 1/8, 1/8
  const std::vector<float> logits = {std::log(1.f), std::log(8.f / 2), std::log(2.f),
                                     std::log(1.f)};
  EXPECT_EQ(kept(changed("top_p(0.4)", logits)), (std::set<std::size_t>{1}));
  EXPECT_EQ(kept(changed("top_p(0.6)", logits)), (std::set<std::size_t>{1, 2}));
  EXPECT_EQ(kept(changed("top_p(0.8)", logits)), (std::set<std::size_t>{0, 1, 2}))
      << "the smaller id among equals";
  EXPECT_EQ(kept(changed("top_p(0.9)", logits)), (std::set<std::size_t>{0, 1, 2, 3}));
  EXPECT_EQ(kept(changed("top_p(0)", logits)), (std::set<std::size_t>{1})) << "one always stays";
  EXPECT_EQ(changed("top_p(1)", logits), logits);
  EXPECT_EQ(changed("top_p(0.5)", {kNo, 7.f, kNo}), (std::vector<float>{kNo, 7.f, kNo}));
}

TEST(TopP, EqualsASortedSum) {
  std::mt19937 random(2);
  for (int round = 0; round < 500; ++round) {
    auto logits = random_logits(random, 1 + random() % 300, round % 3 == 0);
    if (round % 5 == 0) logits[random() % logits.size()] = kNo;
    if (kept(logits).empty()) continue;
    const double p = std::uniform_real_distribution<>(0.01, 0.999)(random);
    std::vector<std::size_t> order(logits.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return logits[a] > logits[b]; });
    double total = 0, before = 0;
    for (auto x : logits) total += std::exp(static_cast<double>(x));
    std::set<std::size_t> expected;
    for (auto i : order) {
      if (before >= p || logits[i] == kNo) break;
      expected.insert(i);
      before += std::exp(static_cast<double>(logits[i])) / total;
    }
    ASSERT_EQ(kept(changed("top_p(" + std::to_string(p) + ")", logits)).size(), expected.size())
        << p;
    ASSERT_EQ(kept(changed("top_p(" + std::to_string(p) + ")", logits)), expected) << p;
  }
}

TEST(MinP, ComparesWithTheLargest) {
  const std::vector<float> logits = {0.f, std::log(0.5f), std::log(0.09f), kNo};
  EXPECT_EQ(kept(changed("min_p(0.1)", logits)), (std::set<std::size_t>{0, 1}));
  EXPECT_EQ(kept(changed("min_p(0.6)", logits)), (std::set<std::size_t>{0}));
  EXPECT_EQ(kept(changed("min_p(1)", logits)), (std::set<std::size_t>{0}));
  EXPECT_EQ(changed("min_p(0)", logits), logits);
}

TEST(RepetitionPenalty, ChangesEachSeenTokenOnce) {
  EXPECT_EQ(changed("repetition_penalty(2)", {4, -4, 4, 0}, {0, 1, 0, 3}),
            (std::vector<float>{2, -8, 4, 0}));
  EXPECT_EQ(changed("repetition_penalty(2, window=2)", {4, -4, 4, 8}, {0, 1, 3}),
            (std::vector<float>{4, -8, 4, 4}));
  EXPECT_EQ(changed("repetition_penalty(2, window=0)", {4, 4}, {0, 1}), (std::vector<float>{2, 2}));
  EXPECT_EQ(changed("repetition_penalty(2)", {4, 4}, {}), (std::vector<float>{4, 4}));
  EXPECT_EQ(changed("repetition_penalty(2)", {4, kNo}, {-1, 7, 1}), (std::vector<float>{4, kNo}))
      << "ids outside are passed over";
  std::vector<std::int32_t> long_ago(65, 1);
  long_ago.front() = 0;
  EXPECT_EQ(changed("repetition_penalty(2)", {4, 4}, long_ago), (std::vector<float>{4, 2}))
      << "64 ids by default";
}

TEST(LogitsStages, OptionsAreChecked) {
  for (const auto* spec : {"temperature(-1)", "top_k(-1)", "top_p(1.1)", "top_p(-0.1)", "min_p(2)",
                           "repetition_penalty(0)", "repetition_penalty(window=-1)", "top_q"}) {
    try {
      (void)registry().make<LogitsStage>(spec);
      ADD_FAILURE() << spec;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Errc::usage);
    }
  }
}

/// Whatever the stages, one token that was allowed stays allowed, and nothing that was forbidden comes back.
TEST(LogitsStages, NeverForbidEverything) {
  std::mt19937 random(3);
  for (const auto* component : registry().components(LogitsStage::kKind)) {
    for (int round = 0; round < 50; ++round) {
      auto logits = random_logits(random, 1 + random() % 40, round % 2);
      for (auto& x : logits) x = random() % 3 ? x : kNo;
      const auto before = kept(logits);
      if (before.empty()) continue;
      const auto after = kept(changed(component->name, logits, {0, 1, 2, 3}));
      EXPECT_FALSE(after.empty()) << component->name;
      EXPECT_TRUE(std::includes(before.begin(), before.end(), after.begin(), after.end()))
          << component->name;
    }
  }
}

}  // namespace
}  // namespace mneme
