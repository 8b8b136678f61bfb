#include "mneme/decode/batch.h"

#include "mneme/core/error.h"
#include "mneme/decode/generate.h"

#include "toy.h"
#include <gtest/gtest.h>
#include <random>

namespace mneme {
namespace {

using testing::kEnd;
using testing::toy;
using testing::toy_model;

struct Fed {
  State state;
  at::Tensor logits;  // [B,V]
};

/// One row for each prompt, of different lengths, as concat makes them.
Fed feed(const LanguageModel& model, const std::vector<std::vector<std::int32_t>>& prompts) {
  std::vector<State> states;
  std::vector<const State*> rows;
  std::vector<at::Tensor> logits;
  for (const auto& prompt : prompts) {
    states.push_back(model.model->start(1));
    at::Tensor last;
    for (auto id : prompt) {
      Batch batch;
      batch.ids = at::full({1, 1}, id, at::kLong);
      last = model.model->forward(batch, states.back()).logits;
    }
    logits.push_back(last);
  }
  for (const auto& state : states) rows.push_back(&state);
  return {State::concat(rows), at::cat(logits)};
}

std::vector<std::vector<std::int32_t>> random_prompts(std::mt19937& random, std::size_t n) {
  std::vector<std::vector<std::int32_t>> out(n);
  for (auto& prompt : out) {
    for (auto m = 1 + random() % 6; m > 0; --m)
      prompt.push_back(static_cast<std::int32_t>(random() % 256));
  }
  return out;
}

TEST(DecodeRows, EveryRowIsWhatItWouldBeAlone) {
  std::mt19937 random(5);
  const auto model = toy();
  // A tenth of the tokens end a row, so that rows end at different steps and leave the batch in the middle.
  const auto ends = [](std::int32_t id, const std::string&) { return id % 10 == 0; };
  std::vector<std::int32_t> stop_ids;
  for (std::int32_t id = 0; id < testing::kVocabulary; id += 10) stop_ids.push_back(id);
  int ended = 0, used_up = 0;
  for (int round = 0; round < 20; ++round) {
    const auto prompts = random_prompts(random, 1 + random() % 5);
    auto [state, logits] = feed(model, prompts);
    const auto rows = decode::decode_rows(model, state, logits, {12, ends});
    ASSERT_EQ(rows.size(), prompts.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      GenerateOptions options;
      options.max_tokens = 12;
      options.stop_ids = stop_ids;
      State alone;
      const auto expected = decode::generate(model, prompts[i], alone, options);
      EXPECT_EQ(rows[i].ids, expected.ids);
      EXPECT_EQ(rows[i].log_probabilities, expected.log_probabilities);
      EXPECT_EQ(rows[i].ended, expected.stop_reason == "eos");
      EXPECT_EQ(rows[i].text, model.tokenizer->decode(rows[i].ids, true));
      EXPECT_EQ(rows[i].log_probabilities.size(), rows[i].ids.size() + rows[i].ended)
          << "the end token's is there too";
      ++(rows[i].ended ? ended : used_up);
    }
  }
  EXPECT_GT(ended, 5);
  EXPECT_GT(used_up, 5);
}

TEST(DecodeRows, RowsThatEndLeaveTheBatch) {
  const auto model = toy();
  std::mt19937 random(6);
  auto [state, logits] = feed(model, random_prompts(random, 4));
  const auto first_ends = logits.argmax(-1);
  const auto ends = [first = first_ends[1].item<std::int64_t>()](
                        std::int32_t id, const std::string&) { return id == first; };
  toy_model(model).passes.clear();
  const auto rows = decode::decode_rows(model, state, logits, {5, ends});
  EXPECT_TRUE(rows[1].ended);
  EXPECT_TRUE(rows[1].ids.empty());
  EXPECT_EQ(rows[1].log_probabilities.size(), 1u);
  ASSERT_EQ(toy_model(model).passes.size(), 4u) << "the last token is not fed";
  for (const auto& pass : toy_model(model).passes)
    EXPECT_EQ(pass, (std::pair<std::int64_t, std::int64_t>{3, 1}));
}

TEST(DecodeRows, StopsBeforeALineFeedAndAtIds) {
  const auto stops = decode::stops_at_line_feed({0, 2});
  EXPECT_TRUE(stops(259, "\nx"));
  EXPECT_TRUE(stops(5, "a\n"));
  EXPECT_TRUE(stops(2, "b"));
  EXPECT_FALSE(stops(3, "b"));
  const auto model = toy(0, {-1, 'h', 'i', 259, 'x'});
  auto [state, logits] = feed(model, {{7}});
  const auto rows = decode::decode_rows(model, state, logits, {24, stops});
  EXPECT_EQ(rows[0].text, "hi");
  EXPECT_TRUE(rows[0].ended);
  EXPECT_EQ(rows[0].log_probabilities.size(), 3u);
}

TEST(DecodeRows, EndsAtTheTokenizersEndByDefault) {
  const auto model = toy(0, {-1, 'o', 'k', kEnd});
  auto [state, logits] = feed(model, {{7}, {8}});
  for (const auto& row : decode::decode_rows(model, state, logits)) {
    EXPECT_EQ(row.text, "ok");
    EXPECT_TRUE(row.ended);
  }
}

TEST(DecodeRows, AFullContextEndsOnlyItsRow) {
  const auto model = toy(4);
  auto [state, logits] = feed(model, {{1, 2, 3}, {4}, {5, 6, 7, 8}});
  const auto never = [](std::int32_t, const std::string&) { return false; };
  const auto rows = decode::decode_rows(model, state, logits, {9, never});
  EXPECT_EQ(rows[0].ids.size(), 2u);
  EXPECT_EQ(rows[1].ids.size(), 4u);
  EXPECT_EQ(rows[2].ids.size(), 1u);
  for (const auto& row : rows) EXPECT_FALSE(row.ended);
}

TEST(DecodeRows, RefusesWhatDoesNotMatch) {
  const auto model = toy();
  auto [state, logits] = feed(model, {{1}, {2}});
  EXPECT_THROW((void)decode::decode_rows(model, state, logits[0]), Error);
  EXPECT_THROW((void)decode::decode_rows(model, state, logits.narrow(0, 0, 1)), Error);
  EXPECT_THROW((void)decode::decode_rows(model, state, logits / 0), Error);
  const auto none = decode::decode_rows(model, state, logits, {0, {}});
  EXPECT_EQ(none.size(), 2u);
  EXPECT_TRUE(none[0].ids.empty());
}

}  // namespace
}  // namespace mneme
