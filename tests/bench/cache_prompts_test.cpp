#include "bench/prompts/cache_prompts.h"

#include <gtest/gtest.h>
#include <map>
#include <set>

namespace mneme::bench {
namespace {

TEST(CachePrompts, AreOfThreeHundredIntentsHalfOfThemTight) {
  const auto prompts = cache_prompts(20'000, 1);
  ASSERT_EQ(prompts.size(), 20'000u);
  std::set<std::string> loose, tight;
  std::map<std::string, std::set<std::string>> answers;
  std::int64_t tight_prompts = 0;
  for (const auto &prompt : prompts) {
    (prompt.tight ? tight : loose).insert(prompt.answer);
    answers[prompt.text].insert(prompt.answer);
    tight_prompts += prompt.tight;
    if (!prompt.tight) continue;
    const auto word = prompt.answer.substr(0, prompt.answer.find(' '));
    EXPECT_NE(prompt.text.find(word), std::string::npos) << prompt.text << " / " << prompt.answer;
  }
  EXPECT_EQ(loose.size(), 150u);
  EXPECT_EQ(tight.size(), 300u) << "150 questions with two words each";
  EXPECT_NEAR(static_cast<double>(tight_prompts) / 20'000, 0.5, 0.02);
  for (const auto &[text, right] : answers) EXPECT_EQ(right.size(), 1u) << text;
}

TEST(CachePrompts, FollowFromTheSeedAndEachFromItsPlace) {
  const auto some = cache_prompts(50, 3), more = cache_prompts(80, 3), other = cache_prompts(50, 4);
  std::size_t same = 0;
  for (std::size_t i = 0; i < some.size(); ++i) {
    EXPECT_EQ(some[i].text, more[i].text);
    EXPECT_EQ(some[i].answer, more[i].answer);
    same += some[i].text == other[i].text;
  }
  EXPECT_LT(same, 5u);
}

}  // namespace
}  // namespace mneme::bench
