#include "mneme/memory/prompt.h"

#include "mneme/core/error.h"

#include <cmath>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace mneme {
namespace {

TEST(Prompt, ReadsBackAsItWas) {
  auto prompt = Prompt::few_shot_quotes();
  prompt.refusal = "not found";
  prompt.spans_apart = 5;
  prompt.refusal_weight = 0.5;
  prompt.refused_below = -0.25;
  prompt.relevance_weight = 2;
  const auto back = Prompt::from_json(prompt.to_json());
  EXPECT_EQ(back.to_json(), prompt.to_json());
  EXPECT_EQ(back.refusal, "not found");
  EXPECT_EQ(back.spans_apart, 5);
  EXPECT_EQ(back.refused_below, -0.25);
}

TEST(Prompt, OfAMemoryThatIsOlderThanReadersNeverRefusesWhatItRead) {
  auto json = nlohmann::json::parse(Prompt::few_shot_quotes().to_json());
  for (const auto* key :
       {"refusal", "spans_apart", "refusal_weight", "refused_below", "relevance_weight"})
    EXPECT_EQ(json.erase(key), 1u) << key;
  const auto old = Prompt::from_json(json.dump());
  EXPECT_EQ(old.refusal, "");
  EXPECT_EQ(old.spans_apart, 3);
  EXPECT_EQ(old.to_json(), Prompt::few_shot_quotes().to_json());
}

TEST(Prompt, WithWeightsThatAreNoneIsDamaged) {
  for (const auto* key : {"spans_apart", "refused_below", "refusal"}) {
    auto json = nlohmann::json::parse(Prompt::few_shot_quotes().to_json());
    json[key] = nullptr;
    EXPECT_THROW(Prompt::from_json(json.dump()), Error) << key;
  }
  auto json = nlohmann::json::parse(Prompt::few_shot_quotes().to_json());
  json["spans_apart"] = 0;
  EXPECT_THROW(Prompt::from_json(json.dump()), Error);
}

}  // namespace
}  // namespace mneme
