#include "mneme/text/pre_tokenizer.h"

#include "mneme/core/error.h"

#include <gtest/gtest.h>
#include <random>

namespace mneme::text {
namespace {

using Pieces = std::vector<std::string>;

Pieces cut(const PreTokenizerStep& step, const std::string& text) {
  Pieces pieces;
  PieceFunction sink([&](std::string_view piece) { pieces.emplace_back(piece); });
  if (!text.empty()) step.split(text, sink);
  return pieces;
}

Pieces cut_at(const std::string& pattern, SplitBehavior behavior, const std::string& text,
              bool invert = false) {
  return cut(*split_by_pattern(pattern, behavior, invert), text);
}

std::string joined(const Pieces& pieces) {
  std::string all;
  for (const auto& piece : pieces) all += piece;
  return all;
}

TEST(PreTokenizer, Gpt2Words) {
  const auto gpt2 = split_by_pattern(kGpt2Pattern, SplitBehavior::isolated, false);
  EXPECT_EQ(cut(*gpt2, "It's 12 o'clock!!  We'll see\n\n x"),
            (Pieces{"It", "'s", " 12", " o", "'", "clock", "!!", " ", " We", "'ll", " see", "\n\n",
                    " x"}));
  EXPECT_EQ(cut(*gpt2, "a   "), (Pieces{"a", "   "}));
  EXPECT_EQ(cut(*gpt2, "\u00e9t\u00e9 \u00bd\u4e2d"),
            (Pieces{"\u00e9t\u00e9", " \u00bd", "\u4e2d"}));
}

TEST(PreTokenizer, MongolianVowelSeparatorIsNoSpace) {
  const auto gpt2 = split_by_pattern(kGpt2Pattern, SplitBehavior::isolated, false);
  EXPECT_EQ(cut(*gpt2, " \u180e"), (Pieces{" \u180e"}));
}

TEST(PreTokenizer, Llama3AndQwen2DifferInDigits) {
  const auto llama3 = split_by_pattern(kLlama3Pattern, SplitBehavior::isolated, false);
  const auto qwen2 = split_by_pattern(kQwen2Pattern, SplitBehavior::isolated, false);
  EXPECT_EQ(cut(*llama3, "WE'LL pay (12345)\n\nnow"),
            (Pieces{"WE", "'LL", " pay", " (", "123", "45", ")\n\n", "now"}));
  EXPECT_EQ(cut(*qwen2, "in 120"), (Pieces{"in", " ", "1", "2", "0"}));
}

TEST(PreTokenizer,
     Behaviors) {  // the examples of Hugging Face's documentation: "the-final--countdown" at "-"
  const std::string text = "the-final--countdown";
  EXPECT_EQ(cut_at("-", SplitBehavior::removed, text), (Pieces{"the", "final", "countdown"}));
  EXPECT_EQ(cut_at("-", SplitBehavior::isolated, text),
            (Pieces{"the", "-", "final", "-", "-", "countdown"}));
  EXPECT_EQ(cut_at("-", SplitBehavior::merged_with_previous, text),
            (Pieces{"the-", "final-", "-", "countdown"}));
  EXPECT_EQ(cut_at("-", SplitBehavior::merged_with_next, text),
            (Pieces{"the", "-final", "-", "-countdown"}));
  EXPECT_EQ(cut_at("-", SplitBehavior::contiguous, text),
            (Pieces{"the", "-", "final", "--", "countdown"}));
  EXPECT_EQ(cut_at("\\w+", SplitBehavior::removed, "one, two", true), (Pieces{"one", "two"}));
  EXPECT_EQ(cut(*split_by_string("--", SplitBehavior::isolated, false), text),
            (Pieces{"the-final", "--", "countdown"}));
}

TEST(PreTokenizer, Digits) {
  EXPECT_EQ(cut(*split_digits(true), "a12\u0663 3"), (Pieces{"a", "1", "2", "\u0663", " ", "3"}));
  EXPECT_EQ(cut(*split_digits(false), "a12\u0663 3"), (Pieces{"a", "12\u0663", " ", "3"}));
}

TEST(PreTokenizer, Bert) {
  EXPECT_EQ(cut(*split_like_bert(), " don't  stop\u3002$5 "),
            (Pieces{"don", "'", "t", "stop", "\u3002", "$", "5"}));
}

TEST(PreTokenizer, StepsCutThePiecesOfTheOneBefore) {
  std::vector<std::unique_ptr<PreTokenizerStep>> steps;
  steps.push_back(prefix_space());
  steps.push_back(split_digits(true));
  steps.push_back(split_by_pattern(kGpt2Pattern, SplitBehavior::isolated, false));
  const PreTokenizer all(std::move(steps));
  Pieces pieces;
  PieceFunction sink([&](std::string_view piece) { pieces.emplace_back(piece); });
  all.split("go 12", sink);
  EXPECT_EQ(pieces, (Pieces{" go", " ", "1", "2"}));
  pieces.clear();
  all.split("", sink);
  EXPECT_TRUE(pieces.empty());
}

TEST(PreTokenizer, PatternsThatCoverTextLoseNoByte) {
  std::mt19937 random(11);
  const std::vector<std::string> bits = {
      " ",    "\n",       "a", "7",  "'s", "\u00bd", "\u4e2d",     "\u0301",
      "\xFF", "\xE2\x82", "!", "  ", "\t", "\u180e", "\U0001F600", std::string(1, '\0')};
  for (const auto pattern : {kGpt2Pattern, kLlama3Pattern, kQwen2Pattern}) {
    const auto step = split_by_pattern(pattern, SplitBehavior::isolated, false);
    for (int round = 0; round < 500; ++round) {
      std::string text;
      for (auto n = random() % 20; n > 0; --n) text += bits[random() % bits.size()];
      const auto pieces = cut(*step, text);
      ASSERT_EQ(joined(pieces), text);
      for (const auto& piece : pieces) ASSERT_FALSE(piece.empty());
    }
  }
}

TEST(PreTokenizer, RefusesBadPatterns) {
  try {
    split_by_pattern("(unclosed", SplitBehavior::isolated, false);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::unsupported);
    EXPECT_NE(std::string(error.what()).find("(unclosed"), std::string::npos);
  }
  EXPECT_THROW(split_by_string("", SplitBehavior::isolated, false), Error);
}

}  // namespace
}  // namespace mneme::text
