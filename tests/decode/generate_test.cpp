#include "mneme/decode/generate.h"

#include "mneme/core/error.h"
#include "mneme/decode/sampler.h"

#include "toy.h"
#include <gtest/gtest.h>

namespace mneme {
namespace {

using testing::kControl;
using testing::kEnd;
using testing::saying;
using testing::toy;
using testing::toy_model;

const std::vector<std::int32_t> kPrompt = {10, 20, 30, 40, 50};

std::vector<std::int32_t> ids_of(std::string_view text) {
  std::vector<std::int32_t> out;
  for (unsigned char c : text) out.push_back(c);
  return out;
}

template <class Body>
Error refusal(Body body) {
  try {
    body();
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "was accepted";
  return Error(Errc::usage, "");
}

TEST(Generate, SaysWhatTheModelSaysUntilItsEnd) {
  const auto model = saying("hello", 5);
  State state;
  const auto out = decode::generate(model, kPrompt, state);
  EXPECT_EQ(out.text, "hello");
  EXPECT_EQ(out.ids, ids_of("hello"));
  EXPECT_EQ(out.stop_reason, "eos");
  EXPECT_EQ(out.prompt_tokens, 5);
  ASSERT_EQ(out.log_probabilities.size(), 6u) << "the end token has one too";
  for (auto x : out.log_probabilities) EXPECT_NEAR(x, 0, 1e-6);
  EXPECT_EQ(out.pending, (std::vector<std::int32_t>{kEnd}));
  EXPECT_EQ(state.positions, (std::vector<std::int64_t>{10})) << "the end token is not fed";
  EXPECT_GT(out.first_token_seconds, 0);
  EXPECT_GE(out.first_token_seconds, out.prefill_seconds);
  EXPECT_GE(out.decode_seconds, 0);
}

/// Greedy by hand: feed, take the largest, feed.
TEST(Generate, GreedyEqualsALoopByHand) {
  const auto model = toy();
  auto by_hand = model.model->start(1);
  std::vector<std::int32_t> expected;
  auto next = kPrompt;
  for (int i = 0; i < 30; ++i) {
    at::Tensor logits;
    for (auto id : next) {
      Batch batch;
      batch.ids = at::full({1, 1}, id, at::kLong);
      logits = model.model->forward(batch, by_hand).logits;
    }
    next.assign(1, static_cast<std::int32_t>(logits.argmax().item<std::int64_t>()));
    expected.push_back(next[0]);
  }
  GenerateOptions options;
  options.max_tokens = 30;
  options.stop_ids.emplace();  // none
  State state;
  const auto out = decode::generate(model, kPrompt, state, options);
  EXPECT_EQ(out.ids, expected);
  EXPECT_EQ(out.stop_reason, "length");
  EXPECT_EQ(out.pending, (std::vector<std::int32_t>{expected.back()}));
}

TEST(Generate, ChunksMakeNoDifferenceAndOnlyTheLastMeetsTheVocabulary) {
  std::vector<std::int32_t> first;
  for (std::int64_t chunk : {1, 2, 3, 5, 512}) {
    const auto model = toy();
    GenerateOptions options;
    options.max_tokens = 8;
    options.prefill_chunk = chunk;
    options.stop_ids.emplace();
    State state;
    const auto out = decode::generate(model, kPrompt, state, options);
    if (first.empty()) first = out.ids;
    EXPECT_EQ(out.ids, first) << chunk;
    const auto& passes = toy_model(model).passes;
    EXPECT_EQ(static_cast<std::int64_t>(passes.size()), (5 + chunk - 1) / chunk + 7);
    EXPECT_EQ(passes.front().second, std::min<std::int64_t>(chunk, 5));
  }
}

TEST(Generate, GoesOnWhereItStoppedByPuttingPendingFirst) {
  const auto model = toy();
  GenerateOptions options;
  options.max_tokens = 12;
  options.stop_ids.emplace();
  State whole_state, cut_state;
  const auto whole = decode::generate(model, kPrompt, whole_state, options);
  options.max_tokens = 5;
  auto first = decode::generate(model, kPrompt, cut_state, options);
  options.max_tokens = 7;
  const auto second = decode::generate(model, first.pending, cut_state, options);
  first.ids.insert(first.ids.end(), second.ids.begin(), second.ids.end());
  EXPECT_EQ(first.ids, whole.ids);
  EXPECT_EQ(cut_state.save(), whole_state.save());
}

TEST(Generate, ASeedReproducesAndMatters) {
  const auto model = toy();
  GenerateOptions options;
  options.max_tokens = 40;
  options.sampler = parse_chain("top_k(50) | temperature(1.5)");
  const auto run = [&](std::uint64_t seed) {
    options.seed = seed;
    State state;
    return decode::generate(model, kPrompt, state, options).ids;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

TEST(Generate, TheHistoryHoldsPromptAndGeneratedTokens) {
  const auto model = saying("abcabc", 5, false);
  GenerateOptions options;
  options.max_tokens = 6;
  options.sampler = parse_chain("repetition_penalty(1000, window=0) | temperature(0)");
  State state;
  const auto out = decode::generate(model, ids_of("a...."), state, options);
  EXPECT_EQ(std::count(out.ids.begin(), out.ids.end(), 'a'), 0) << "it is in the prompt";
  EXPECT_EQ(out.ids[1], 'b');
  EXPECT_EQ(std::count(out.ids.begin(), out.ids.end(), 'b'), 1) << "it was said";
}

TEST(Generate, StopStringsEndTheTextAcrossTokens) {
  const auto model = saying("one\nUser: two", 5);
  GenerateOptions options;
  options.stop = {"\nUser:"};
  std::string streamed;
  options.on_text = [&](std::string_view text) {
    streamed += text;
    return true;
  };
  State state;
  const auto out = decode::generate(model, kPrompt, state, options);
  EXPECT_EQ(out.text, "one");
  EXPECT_EQ(streamed, "one");
  EXPECT_EQ(out.stop_reason, "stop");
  EXPECT_EQ(out.ids, ids_of("one\nUser:")) << "all tokens that were taken";
  EXPECT_EQ(out.pending, (std::vector<std::int32_t>{':'}));
}

TEST(Generate, TextHeldForAStopStringComesAtTheEnd) {
  const auto model = saying("wait\nUs", 5);
  GenerateOptions options;
  options.stop = {"\nUser:"};
  std::string streamed;
  options.on_text = [&](std::string_view text) {
    streamed += text;
    return true;
  };
  State state;
  const auto out = decode::generate(model, kPrompt, state, options);
  EXPECT_EQ(out.text, "wait\nUs");
  EXPECT_EQ(streamed, out.text);
  EXPECT_EQ(out.stop_reason, "eos");
}

TEST(Generate, StreamsWholeCharacters) {
  const std::string text = "aé→😀z";
  const auto model = saying(text + "\xe2\x86", 5);
  GenerateOptions options;
  std::vector<std::string> pieces;
  options.on_text = [&](std::string_view piece) {
    pieces.emplace_back(piece);
    return true;
  };
  State state;
  const auto out = decode::generate(model, kPrompt, state, options);
  EXPECT_EQ(pieces, (std::vector<std::string>{"a", "é", "→", "😀", "z", "\xef\xbf\xbd"}));
  EXPECT_EQ(out.text, text + "\xef\xbf\xbd") << "half a character at the end becomes U+FFFD";
}

TEST(Generate, SpecialTokensAreIdsAndNoText) {
  const auto model = toy(0, {-1, -1, -1, -1, -1, 'a', kControl, 'b', kEnd});
  State state;
  const auto out = decode::generate(model, kPrompt, state);
  EXPECT_EQ(out.text, "ab");
  EXPECT_EQ(out.ids, (std::vector<std::int32_t>{'a', kControl, 'b'}));
}

TEST(Generate, StopIdsReplaceTheTokenizersOwn) {
  const auto model = saying("a.b", 5);
  GenerateOptions options;
  options.stop_ids = {{'.'}};
  State state;
  const auto out = decode::generate(model, kPrompt, state, options);
  EXPECT_EQ(out.text, "a");
  EXPECT_EQ(out.stop_reason, "eos");
  options.stop_ids.emplace();
  options.max_tokens = 4;
  State other;
  EXPECT_EQ(decode::generate(model, kPrompt, other, options).ids.back(), kEnd)
      << "with none, nothing ends it";
}

TEST(Generate, AFullContextIsSaid) {
  const auto model = saying("abcdefgh", 5, false, 8);
  State state;
  const auto out = decode::generate(model, kPrompt, state);
  EXPECT_EQ(out.stop_reason, "context");
  EXPECT_EQ(out.text, "abcd") << "three fed, and one from the logits of the last position";
  EXPECT_EQ(state.positions.front(), 8);
  EXPECT_EQ(out.pending, (std::vector<std::int32_t>{'d'}));
}

TEST(Generate, APromptThatDoesNotFitIsRefusedAndNothingIsFed) {
  const auto model = toy(8);
  State state;
  GenerateOptions options;
  options.max_tokens = 1;
  EXPECT_EQ(decode::generate(model, std::vector<std::int32_t>(8, 1), state, options).ids.size(), 1u)
      << "one that just fits";
  State fresh;
  const auto error =
      refusal([&] { (void)decode::generate(model, std::vector<std::int32_t>(9, 1), fresh); });
  EXPECT_EQ(error.code(), Errc::full);
  EXPECT_STREQ(error.what(),
               "the prompt has 9 tokens, the model's context takes 8: shorten it by 1 tokens");
  State fed;
  (void)decode::generate(model, {1, 2, 3, 4}, fed, options);
  const auto before = fed.save();
  EXPECT_STREQ(refusal([&] { (void)decode::generate(model, {1, 2, 3, 4, 5, 6}, fed); }).what(),
               "the prompt has 6 tokens behind 4 already held, the model's context takes 8: "
               "shorten it by 2 tokens");
  EXPECT_EQ(fed.save(), before);
}

TEST(Generate, StopsWhenTheReaderSaysSo) {
  const auto model = saying("abcdef", 5);
  GenerateOptions options;
  options.on_text = [](std::string_view text) { return text != "c"; };
  State state;
  const auto out = decode::generate(model, kPrompt, state, options);
  EXPECT_EQ(out.stop_reason, "interrupted");
  EXPECT_EQ(out.text, "abc");
  EXPECT_EQ(state.positions.front(), 7);
  EXPECT_EQ(out.pending, (std::vector<std::int32_t>{'c'}));
}

TEST(Generate, StopsBetweenTheChunksOfAPrompt) {
  const auto model = saying("abc", 5);
  GenerateOptions options;
  options.prefill_chunk = 2;
  int asked = 0;
  options.on_text = [&](std::string_view text) {
    EXPECT_TRUE(text.empty());
    return ++asked < 2;
  };
  State state;
  const auto out = decode::generate(model, kPrompt, state, options);
  EXPECT_EQ(out.stop_reason, "interrupted");
  EXPECT_EQ(out.prompt_tokens, 4);
  EXPECT_EQ(out.pending, (std::vector<std::int32_t>{50}));
  EXPECT_TRUE(out.ids.empty());
  EXPECT_EQ(out.first_token_seconds, 0);
}

TEST(Generate, NoTokensOnlyFeeds) {
  const auto model = saying("abc", 5);
  GenerateOptions options;
  options.max_tokens = 0;
  State state;
  const auto out = decode::generate(model, kPrompt, state, options);
  EXPECT_EQ(out.stop_reason, "length");
  EXPECT_TRUE(out.ids.empty() && out.pending.empty() && out.log_probabilities.empty());
  EXPECT_EQ(state.positions.front(), 5);
}

TEST(Generate, RefusesWrongInput) {
  const auto model = toy();
  State state;
  GenerateOptions options;
  EXPECT_EQ(refusal([&] { (void)decode::generate(model, {}, state); }).code(), Errc::invalid);
  options.prefill_chunk = 0;
  EXPECT_EQ(refusal([&] { (void)decode::generate(model, kPrompt, state, options); }).code(),
            Errc::invalid);
  options = {};
  options.max_tokens = -1;
  EXPECT_EQ(refusal([&] { (void)decode::generate(model, kPrompt, state, options); }).code(),
            Errc::invalid);
  options = {};
  options.sampler = parse_chain("top_k(-3)");
  EXPECT_EQ(refusal([&] { (void)decode::generate(model, kPrompt, state, options); }).code(),
            Errc::usage);
  options = {};
  options.stop = {""};
  EXPECT_EQ(refusal([&] { (void)decode::generate(model, kPrompt, state, options); }).code(),
            Errc::usage);
  auto two = model.model->start(2);
  EXPECT_EQ(refusal([&] { (void)decode::generate(model, kPrompt, two); }).code(), Errc::invalid);
  EXPECT_TRUE(toy_model(model).passes.empty()) << "nothing was run";
}

}  // namespace
}  // namespace mneme
