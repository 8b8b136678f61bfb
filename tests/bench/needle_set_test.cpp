// Needle sets: the same for the same seed, and ranked as candidates run one by one.
#include "bench/probes/needle_set.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "kv_models.h"
#include <algorithm>
#include <gtest/gtest.h>

namespace mneme::bench {
namespace {

constexpr const char* kTask = "needle(form=number, digits=2)";

TEST(NeedleSet, TheSameSeedGivesTheSameTexts) {
  const auto model = check::letter_model();
  const auto some = needle_texts(model, "/nonexistent", kTask, 500, 6, 3),
             same = needle_texts(model, "/nonexistent", kTask, 500, 6, 3),
             others = needle_texts(model, "/nonexistent", kTask, 500, 6, 4);
  ASSERT_EQ(some.size(), 6u);
  for (std::size_t i = 0; i < some.size(); ++i) {
    EXPECT_EQ(some[i].prompt(), same[i].prompt());
    EXPECT_EQ(some[i].candidates, same[i].candidates);
    EXPECT_NE(some[i].prompt(), others[i].prompt());
    EXPECT_LE(some[i].prompt().size(), 500u);
    EXPECT_GT(some[i].candidates.size(), 2u);
    // The prompt is the context with the question behind it.
    const auto prompt = some[i].prompt();
    EXPECT_TRUE(std::equal(some[i].question.rbegin(), some[i].question.rend(), prompt.rbegin()));
    EXPECT_EQ(prompt.size(), some[i].context.size() + some[i].question.size());
  }
}

TEST(NeedleSet, RanksTheCandidatesAsTheyRunOneByOne) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  std::size_t right = 0;
  for (auto text : needle_texts(model, "/nonexistent", kTask, 300, 8, 5)) {
    const auto prompt = text.prompt();
    std::vector<double> of;
    for (const auto& candidate : text.candidates) {
      auto ids = prompt;
      ids.insert(ids.end(), candidate.begin(), candidate.end());
      auto state = model.model->start(1);
      const auto logits = model.run(ids, state, LogitsAt::all).logits[0];
      double sum = 0;
      for (std::size_t t = 0; t < candidate.size(); ++t)
        sum += check::log_softmax_of(logits[static_cast<std::int64_t>(prompt.size() + t) -
                                            1])[static_cast<std::size_t>(candidate[t])];
      of.push_back(sum);
    }
    const auto best = static_cast<std::size_t>(std::max_element(of.begin(), of.end()) - of.begin());
    EXPECT_EQ(ranked_behind(model, prompt, text).right, best == 0);
    std::swap(text.candidates[0], text.candidates[best]);
    EXPECT_TRUE(ranked_behind(model, prompt, text).right);
    ++right;
  }
  EXPECT_EQ(right, 8u);
}

}  // namespace
}  // namespace mneme::bench
