#include "mneme/text/wordpiece.h"

#include "mneme/core/error.h"
#include "mneme/text/normalizer.h"

#include <gtest/gtest.h>
#include <random>

namespace mneme::text {
namespace {

WordPieceParts small() {
  WordPieceParts parts;
  parts.pieces = {"[UNK]", "un",     "##aff",           "##able", "##a",
                  "a",     "\u00e9", "##\u00e9t\u00e9", ".",      "unaff"};
  return parts;
}

std::vector<std::int32_t> encode(const WordPiece& model, std::string_view word) {
  std::vector<std::int32_t> ids;
  const auto room = model.workspace();
  model.encode_word(word, ids, *room);
  return ids;
}

TEST(WordPiece, LongestFirst) {
  const WordPiece model(small());
  EXPECT_EQ(encode(model, "unaffable"), (std::vector<std::int32_t>{9, 3}));
  EXPECT_EQ(encode(model, "una"), (std::vector<std::int32_t>{1, 4}));
  EXPECT_EQ(encode(model, "unx"),
            (std::vector<std::int32_t>{0}));  // nothing of a word that does not come out
  EXPECT_EQ(encode(model, "a\u00e9t\u00e9"), (std::vector<std::int32_t>{5, 7}));
  EXPECT_EQ(encode(model, "\u00e9"), (std::vector<std::int32_t>{6}));
}

TEST(WordPiece, LengthIsInCharacters) {
  auto parts = small();
  parts.longest_word_characters = 4;
  const WordPiece model(parts);
  EXPECT_EQ(encode(model, "a\u00e9t\u00e9"), (std::vector<std::int32_t>{5, 7}));
  EXPECT_EQ(encode(model, "aaaaa"), (std::vector<std::int32_t>{0}));
}

TEST(WordPiece, Text) {
  const WordPiece model(small());
  std::string text;
  model.append_text(1, true, text);
  model.append_text(2, false, text);
  model.append_text(5, false, text);
  model.append_text(8, false, text);
  EXPECT_EQ(text, "unaff a.");
}

TEST(WordPiece, RefusesAnUnknownTokenOutside) {
  auto parts = small();
  parts.unknown = 10;
  EXPECT_THROW(WordPiece{parts}, Error);
}

TEST(BertNormalizer, Uncased) {
  const auto normalizer = bert_normalizer({});
  EXPECT_EQ(normalizer->normalize("H\u00c9LLO\tW\u00f6rld\r\n"), "hello world  ");
  EXPECT_EQ(normalizer->normalize("a\x01\u200d\ufeff\ufffd"
                                  "b"),
            "ab");
  EXPECT_EQ(normalizer->normalize("x\u4e2d\u6587y"), "x \u4e2d  \u6587 y");
  EXPECT_EQ(normalizer->normalize("e\u0301\u0323"), "e");
  EXPECT_EQ(normalizer->normalize("\xFF\xC3z"), "z");
  EXPECT_EQ(normalizer->normalize("\uac00"), "\u1100\u1161");
  EXPECT_EQ(normalizer->normalize("a\u00a0b\u2003c"), "a b c");
}

TEST(BertNormalizer, EachPartAlone) {
  EXPECT_EQ(bert_normalizer({false, false, false, true})->normalize("\u0130\u00c9\t"),
            "i\u0307\u00e9\t");
  EXPECT_EQ(bert_normalizer({false, false, true, false})->normalize("\u00c9\u00e9"), "Ee");
  EXPECT_EQ(bert_normalizer({true, false, false, false})->normalize("A\x02\n\u4e2d"), "A \u4e2d");
  EXPECT_EQ(bert_normalizer({false, true, false, false})->normalize("A\u4e2d\x02"),
            "A \u4e2d \x02");
}

TEST(Normalizer, FormsKeepBrokenBytes) {
  EXPECT_EQ(normalization_form(NormalizationForm::nfc)
                ->normalize("e\u0301\xFF"
                            "e\u0301"),
            "\u00e9\xFF\u00e9");
  EXPECT_EQ(normalization_form(NormalizationForm::nfd)->normalize("\u00e9"), "e\u0301");
  EXPECT_EQ(normalization_form(NormalizationForm::nfkc)->normalize("\ufb01"), "fi");
  EXPECT_EQ(lowercase_normalizer()->normalize("\u00c4\xC3"), "\u00e4\xC3");
  std::vector<std::unique_ptr<Normalizer>> parts;
  parts.push_back(normalization_form(NormalizationForm::nfd));
  parts.push_back(strip_accents_normalizer());
  EXPECT_EQ(normalizer_sequence(std::move(parts))->normalize("\u00c9t\u00e9"), "Ete");
}

TEST(Normalizer, LongRunsOfMarksAreNotQuadratic) {
  std::string marks = "a";
  for (int i = 0; i < 200000; ++i) marks += i % 2 ? "\u0301" : "\u0323";
  EXPECT_EQ(bert_normalizer({})->normalize(marks), "a");
  std::string ordered = "\u1ea1";  // a with the first dot below
  for (int i = 1; i < 100000; ++i) ordered += "\u0323";
  for (int i = 0; i < 100000; ++i) ordered += "\u0301";
  EXPECT_EQ(normalization_form(NormalizationForm::nfc)->normalize(marks), ordered);
}

}  // namespace
}  // namespace mneme::text
