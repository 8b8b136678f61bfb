#include "mneme/memory/choice.h"

#include <gtest/gtest.h>
#include <vector>

namespace mneme::memory {
namespace {

std::size_t choose(const std::vector<std::string>& answers, const std::vector<double>& likely,
                   const std::vector<double>& scores, double weight) {
  return choose_answer(answers, likely, scores, weight);
}

TEST(Choice, WeighsLikelihoodAgainstRetrieval) {
  const std::vector<std::string> answers{"a", "b", "c"};
  EXPECT_EQ(choose(answers, {-1, -0.9, -2}, {0.9, 0.8, 0.7}, 0), 1U);
  EXPECT_EQ(choose(answers, {-1, -0.9, -2}, {0.9, 0.8, 0.7}, 2), 0U);    // 0.8 against 0.7
  EXPECT_EQ(choose(answers, {-1, -0.9, -0.4}, {0.9, 0.8, 0.7}, 2), 2U);  // 0.8, 0.7, 1.0
  EXPECT_EQ(choose(answers, {-1, -1, -1}, {0.5, 0.5, 0.5}, 4), 0U);      // equal: the first
}

TEST(Choice, AnEmptyAnswerIsTakenOnlyWhereThereIsNoOther) {
  EXPECT_EQ(choose({"", "b"}, {0, -9}, {1, 0}, 5), 1U);
  EXPECT_EQ(choose({"", ""}, {0, 0}, {0, 1}, 5), 0U);
}

}  // namespace
}  // namespace mneme::memory
