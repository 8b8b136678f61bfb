#include "mneme/memory/choice.h"

#include <cmath>
#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace mneme::memory {
namespace {

struct Read {
  std::string text;
  double likely = 0, score = 0, refused = 0;
};

Choice choose(const std::vector<Read>& read, const Prompt& prompt, double relevance = 0) {
  std::vector<ReadAnswer> answers;
  for (const auto& r : read) answers.push_back({r.text, 1, r.likely, true, r.refused});
  std::vector<ScoredAnswer> scored;
  for (std::size_t i = 0; i < read.size(); ++i) scored.push_back({&answers[i], read[i].score});
  return choose_answer(scored, relevance, prompt);
}

Prompt weights(double score, double refusal = 0) {
  Prompt out;
  out.score_weight = score;
  out.refusal_weight = refusal;
  return out;
}

TEST(Choice, WeighsLikelihoodAgainstRetrieval) {
  const std::vector<Read> two{{"a", -1, 0.9}, {"b", -0.9, 0.8}, {"c", -2, 0.7}};
  EXPECT_EQ(choose(two, weights(0)).best, 1U);
  EXPECT_EQ(choose(two, weights(2)).best, 0U);  // 0.8 against 0.7
  const std::vector<Read> last{{"a", -1, 0.9}, {"b", -0.9, 0.8}, {"c", -0.4, 0.7}};
  EXPECT_EQ(choose(last, weights(2)).best, 2U);  // 0.8, 0.7, 1.0
  const std::vector<Read> equal{{"a", -1, 0.5}, {"b", -1, 0.5}};
  EXPECT_EQ(choose(equal, weights(4)).best, 0U);
}

TEST(Choice, AnEmptyAnswerIsTakenOnlyWhereThereIsNoOther) {
  EXPECT_EQ(choose({{"", 0, 1}, {"b", -9, 0}}, weights(5)).best, 1U);
  EXPECT_EQ(choose({{"", 0, 0}, {"", 0, 1}}, weights(5)).best, 0U);
}

TEST(Choice, ASpanThatRefusesGivesWay) {
  const std::vector<Read> read{{"a", -0.1, 0.5, 0.9}, {"b", -1, 0.5, 0.1}};
  EXPECT_EQ(choose(read, weights(0, 0)).best, 0U);
  EXPECT_EQ(choose(read, weights(0, 1)).best, 1U);  // -0.1 + log .1 against -1 + log .9
}

TEST(Choice, RefusesBelowItsConfidenceOnlyWhereThePromptCan) {
  auto prompt = weights(1, 2);
  prompt.relevance_weight = 3;
  prompt.refused_below = 2.4;
  const std::vector<Read> read{{"a", -0.5, 0.5, 0.2}};
  const double expected = -0.5 + 0.5 + 2 * std::log(0.8) + 3 * 0.9;
  EXPECT_NEAR(choose(read, prompt, 0.9).confidence, expected, 1e-12);
  EXPECT_FALSE(choose(read, prompt, 0.9).refused);
  prompt.refusal = "not found";
  EXPECT_TRUE(choose(read, prompt, 0.9).refused);   // 2.254
  EXPECT_FALSE(choose(read, prompt, 1.0).refused);  // 2.554
}

TEST(Choice, ACertainRefusalIsNoReasonForNumbersThatAreNone) {
  auto prompt = weights(0, 1);
  prompt.refusal = "not found";
  const auto choice = choose({{"a", -1, 0, 1.0}, {"b", -2, 0, 1.0}}, prompt);
  EXPECT_EQ(choice.best, 0U);
  EXPECT_TRUE(std::isfinite(choice.confidence));
  EXPECT_TRUE(choice.refused);
}

}  // namespace
}  // namespace mneme::memory
