#include "mneme/text/span.h"

#include "mneme/core/error.h"
#include "mneme/text/sentence.h"
#include "mneme/text/white_space.h"

#include <ctime>
#include <gtest/gtest.h>
#include <random>
#include <set>

namespace mneme {
namespace {

// A counter that is easy to work by hand: one token a word.
std::int64_t words(std::string_view s) {
  std::int64_t n = 0;
  bool in = false;
  for (std::size_t at = 0; at < s.size();) {
    const auto space = text::space_at(s, at);
    if (space == 0 && !in) ++n;
    in = space == 0;
    at += std::max<std::size_t>(space, 1);
  }
  return n;
}

// About what a byte-level tokenizer makes of English, and more of what has no spaces.
std::int64_t quarter(std::string_view s) { return static_cast<std::int64_t>(s.size() + 3) / 4; }

std::string some_words(int n, const std::string& word = "word") {
  std::string out;
  for (int i = 0; i < n; ++i) out += (i == 0 ? "" : " ") + word + std::to_string(i);
  return out + ".";
}

std::vector<Span> passages(const std::vector<Span>& all) {
  std::vector<Span> out;
  for (const auto& s : all) {
    if (s.kind == "passage") out.push_back(s);
  }
  return out;
}

std::string piece(const std::string& text, const Span& s) {
  return text.substr(static_cast<std::size_t>(s.begin), static_cast<std::size_t>(s.end - s.begin));
}

std::vector<std::string> cut(const std::string& text, Media media = Media::text,
                             const CountTokens& count = words, SpanOptions o = {}) {
  std::vector<std::string> out;
  for (const auto& s : passages(cut_spans(text, media, count, o))) out.push_back(piece(text, s));
  return out;
}

// What must hold of any cut.
void check(const std::string& text, Media media, const CountTokens& count, const SpanOptions& o,
           bool additive = true) {
  const auto all = cut_spans(text, media, count, o);
  std::int64_t at = text.rfind("\xEF\xBB\xBF", 0) == 0 ? 3 : 0;
  const auto blank = [&](std::int64_t from, std::int64_t to) {
    for (auto i = static_cast<std::size_t>(from); i < static_cast<std::size_t>(to);) {
      const auto n = text::space_at(text, i);
      if (n == 0) return false;
      i += n;
    }
    return true;
  };
  std::vector<std::int64_t> held(all.size(), 0);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto& s = all[i];
    ASSERT_EQ(s.order, static_cast<std::int64_t>(i));
    ASSERT_LT(s.begin, s.end);
    ASSERT_LE(s.end, static_cast<std::int64_t>(text.size()));
    ASSERT_TRUE(text::begins_character(text[static_cast<std::size_t>(s.begin)]));
    ASSERT_TRUE(static_cast<std::size_t>(s.end) == text.size() ||
                text::begins_character(text[static_cast<std::size_t>(s.end)]));
    ASSERT_EQ(text::space_before(text, static_cast<std::size_t>(s.end)), 0U);
    ASSERT_LT(s.parent, static_cast<std::int64_t>(i));
    if (s.parent >= 0) {
      const auto& p = all[static_cast<std::size_t>(s.parent)];
      ASSERT_EQ(p.kind, "section");
      ASSERT_LE(p.begin, s.begin);
      ASSERT_GE(p.end, s.end);
    }
    if (s.kind != "passage") continue;
    ASSERT_LE(at, s.begin) << "overlap";
    ASSERT_TRUE(blank(at, s.begin))
        << "text lost: "
        << text.substr(static_cast<std::size_t>(at), static_cast<std::size_t>(s.begin - at));
    at = s.end;
    ASSERT_LE(s.tokens, o.max_tokens);
    ASSERT_GE(s.tokens, 1);
    if (additive) {
      ASSERT_LE(count(piece(text, s)), o.max_tokens);
    }
    for (auto p = s.parent; p >= 0; p = all[static_cast<std::size_t>(p)].parent)
      held[static_cast<std::size_t>(p)] += s.tokens;
  }
  ASSERT_TRUE(blank(at, static_cast<std::int64_t>(text.size()))) << "text lost at the end";
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i].kind == "section" && all[i].parent < 0) {
      ASSERT_GE(all[i].tokens, held[i]);
    }
  }
}

TEST(Spans, NormalParagraphsStayAsTheyAre) {
  const std::vector<std::string> want = {some_words(41), some_words(154), some_words(250),
                                         some_words(60)};
  EXPECT_EQ(cut(want[0] + "\n\n" + want[1] + "\n \t\n\n" + want[2] + "\r\n\r\n" + want[3] + "\n"),
            want);
}

TEST(Spans, OneParagraphALineStaysOneSpanALine) {
  const std::vector<std::string> want = {some_words(45), some_words(90), some_words(200)};
  EXPECT_EQ(cut(want[0] + "\n" + want[1] + "\n" + want[2] + "\n"), want);
}

TEST(Spans, LongLineThatBreaksInsideASentenceIsNoParagraph) {
  std::string broken = some_words(80);
  broken.back() = 'O';
  const std::string paragraph = "Short (CO\n2) " + broken + "\n2 " + some_words(60);
  EXPECT_EQ(cut(paragraph + "\n\n" + paragraph + "\n"),
            (std::vector<std::string>{paragraph, paragraph}));
}

TEST(Spans, ParagraphsWithoutBlankLinesAreCutWhereALineBegins) {
  std::string text;
  for (int p = 0; p < 12; ++p) {
    std::string paragraph = "Here";
    std::size_t line = 4;
    for (int w = 1; w < 70; ++w) {
      const std::string word = w % 10 == 0 ? "Word" : w % 10 == 9 ? "word." : "word";
      line += 1 + word.size();
      paragraph += (line > 72 ? "\n" : " ") + word;
      if (line > 72) line = word.size();
    }
    text += paragraph + "\n";
  }
  for (const auto& part : cut(text)) EXPECT_EQ(part.substr(0, 8), "Here wor");
}

TEST(Spans, HardWrappedParagraphIsOne) {
  std::string wrapped;
  for (int i = 0; i < 10; ++i) wrapped += some_words(12) + "\n";
  EXPECT_EQ(cut(wrapped + "\n" + wrapped).size(), 2U);
}

TEST(Spans, LongParagraphIsCutAtSentencesIntoNearlyEqualParts) {
  std::string text;
  for (int i = 0; i < 30; ++i) text += (i == 0 ? "" : " ") + some_words(10, "Word");
  const auto parts = cut(text);  // 300 words
  ASSERT_EQ(parts.size(), 2U);
  EXPECT_EQ(words(parts[0]), 150);
  EXPECT_EQ(words(parts[1]), 150);
  EXPECT_EQ(parts[0].back(), '.');
}

TEST(Spans, ShortParagraphJoinsANeighbourAndNormalOnesDoNot) {
  const auto a = some_words(100), b = some_words(10), c = some_words(60), d = some_words(70);
  // The short one goes to the smaller of its neighbours.
  EXPECT_EQ(cut(a + "\n\n" + b + "\n\n" + c + "\n\n" + d),
            (std::vector<std::string>{a, b + "\n\n" + c, d}));
  // Short ones that are long enough together leave the normal ones alone.
  const auto e = some_words(25);
  EXPECT_EQ(cut(a + "\n\n" + e + "\n\n" + e + "\n\n" + c),
            (std::vector<std::string>{a, e + "\n\n" + e, c}));
  // Where it does not fit, it stays.
  const auto f = some_words(245);
  EXPECT_EQ(cut(f + "\n\n" + b + "\n\n" + f), (std::vector<std::string>{f, b, f}));
}

TEST(Spans, TextOfShortParagraphsIsJoined) {
  std::string text;
  for (int i = 0; i < 60; ++i) text += some_words(10) + "\n\n";
  const auto parts = cut(text);
  EXPECT_GE(parts.size(), 3U);
  EXPECT_LE(parts.size(), 6U);
  for (const auto& p : parts) {
    EXPECT_GE(words(p), 40);
    EXPECT_LE(words(p), 250);
  }
}

TEST(Spans, HeadingLikeLineGoesWithWhatFollows) {
  const auto a = some_words(100), b = some_words(100);
  EXPECT_EQ(cut(a + "\n\nThe second chapter\n\n" + b),
            (std::vector<std::string>{a, "The second chapter\n\n" + b}));
  EXPECT_EQ(cut(a + "\n\nIt works like this:\n\n" + b),
            (std::vector<std::string>{a, "It works like this:\n\n" + b}));
  // A sentence is no heading: it goes to the smaller neighbour.
  const auto c = some_words(50);
  EXPECT_EQ(cut(c + "\n\nThat was all.\n\n" + b),
            (std::vector<std::string>{c + "\n\nThat was all.", b}));
  // Also before a paragraph that has to be cut.
  std::string vast;
  for (int i = 0; i < 50; ++i) vast += some_words(10, "Word") + " ";
  const auto parts = cut("A title\n\n" + vast);
  ASSERT_EQ(parts.size(), 3U);
  EXPECT_EQ(parts[0].substr(0, 9), "A title\n\n");
}

TEST(Spans, MarkdownHeadingsAreParents) {
  const std::string text = "# Top\n\n" + some_words(50) + "\n\n## Left\n" + some_words(60) +
                           "\n\n" + some_words(45) + "\n\n## Right\n\n### Deep\n\n" +
                           some_words(70) + "\n\n# Next\n" + some_words(5);
  const auto all = cut_spans(text, Media::text, words);
  std::vector<std::string> got;
  for (const auto& s : all)
    got.push_back(s.kind.substr(0, 1) + std::to_string(s.parent) + " " +
                  piece(text, s).substr(0, 7));
  EXPECT_EQ(got, (std::vector<std::string>{"s-1 # Top\n\n", "p0 # Top\n\n", "s0 ## Left",
                                           "p2 ## Left", "p2 word0 w", "s0 ## Righ", "s5 ### Dee",
                                           "p5 ## Righ", "s-1 # Next\n", "p8 # Next\n"}));
  EXPECT_EQ(all[0].tokens, 2 + 50 + 2 + 60 + 45 + 2 + 2 + 70);
  EXPECT_EQ(piece(text, all[2]), "## Left\n" + some_words(60) + "\n\n" + some_words(45));
  check(text, Media::text, words, {});
}

TEST(Spans, UnderlinedTitlesAreHeadings) {
  const std::string text = "The \"assert\" statement\n**********************\n\n" + some_words(50) +
                           "\n\n   Sub\n   ===\n\n" + some_words(50) + "\n\nOther\n=====\n" +
                           some_words(50) + "\n\n-----\nAbove\n-----\n" + some_words(50);
  std::vector<std::string> got;
  for (const auto& s : cut_spans(text, Media::text, words)) {
    if (s.kind == "section")
      got.push_back(std::to_string(s.parent) + " " + piece(text, s).substr(0, 5));
  }
  EXPECT_EQ(got, (std::vector<std::string>{"-1 The \"", "0 Sub\n ", "0 Other", "4 -----"}));
}

TEST(Spans, HashesInFencesAreNoHeadings) {
  const std::string text = some_words(50) + "\n\n```sh\n# not a heading\n\nls\n```\n\n" +
                           some_words(50) + "\n\n~~~\nopen\n\n# Heading\n\ntext";
  int sections = 0;
  for (const auto& s : cut_spans(text, Media::text, words)) sections += s.kind == "section";
  EXPECT_EQ(sections, 1);  // the fence that is left open hides nothing
  check(text, Media::text, words, {});
}

TEST(Spans, FenceStaysWholeIfItFits) {
  std::string fence = "```\n";
  for (int i = 0; i < 20; ++i) fence += "do this and that. Then more\n\n";
  fence += "```";
  const auto parts = cut(some_words(200) + "\n\n" + fence + "\n\n" + some_words(200));
  ASSERT_EQ(parts.size(), 3U);
  EXPECT_EQ(parts[1], fence);
}

TEST(Spans, CodeIsCutWhereDefinitionsBegin) {
  std::string code;
  for (int f = 0; f < 8; ++f) {
    code += "def f" + std::to_string(f) + "(x):\n";
    for (int i = 0; i < 20; ++i)
      code += "    y = x + " + std::to_string(i) + (i % 7 == 6 ? "\n\n" : "\n");
    code += "    return y\n\n\n";
  }
  for (const auto& p : cut(code, Media::code)) EXPECT_EQ(p.substr(0, 5), "def f");
  check(code, Media::code, words, {});
  // The first line keeps its indentation.
  EXPECT_EQ(cut("\n\n    indented\n  less\n", Media::code),
            (std::vector<std::string>{"    indented\n  less"}));
}

TEST(Spans, LineWithoutSentencesIsCutAtWordsThenCharacters) {
  std::string line;
  for (int i = 0; i < 3000; ++i) line += "word" + std::to_string(i) + " ";
  const auto parts = cut(line);
  EXPECT_LE(parts.size(), 14U);
  for (const auto& p : parts) {
    EXPECT_LE(words(p), 250);
    EXPECT_EQ(p.substr(0, 4), "word");
  }
  std::string solid;
  for (int i = 0; i < 3000; ++i) solid += "\xE4\xB8\xAD";
  check(solid, Media::text, quarter, {});
  EXPECT_EQ(cut(solid, Media::text, quarter).size(),
            10U);  // 9000 bytes, 2250 tokens; pieces of 64 bytes round up
}

TEST(Spans, ByteOrderMarkAndWhiteSpaceAreOutside) {
  EXPECT_EQ(cut("\xEF\xBB\xBF\r\n  hello there \xC2\xA0\r\n\r\n"),
            (std::vector<std::string>{"hello there"}));
  EXPECT_TRUE(cut_spans("", Media::text, words).empty());
  EXPECT_TRUE(cut_spans(" \n\n\xE3\x80\x80\n", Media::code, words).empty());
}

TEST(Spans, WrongOptionsAreRefused) {
  EXPECT_THROW(cut_spans("x", Media::text, words, {0, 10}), Error);
  EXPECT_THROW(cut_spans("x", Media::text, words, {11, 10}), Error);
  EXPECT_THROW(cut_spans("x", Media::image, words), Error);
}

// Texts put together from what has caused trouble: every property holds for all of them.
TEST(Spans, PropertiesHoldForRandomTexts) {
  const std::vector<std::string> parts = {"word ",
                                          "Sentence end. ",
                                          "\n",
                                          "\n\n",
                                          "\r\n",
                                          "# Head\n",
                                          "### Deep\n\n",
                                          "Title\n=====\n",
                                          "```\n",
                                          "~~~~\n",
                                          "---\n",
                                          "- item\n",
                                          "    indented\n",
                                          "\xE4\xB8\xAD\xE6\x96\x87\xE3\x80\x82",
                                          "\xF0\x9F\x98\x80",
                                          "\xC2\xA0",
                                          "\t",
                                          "a:\n\n",
                                          "}\n",
                                          std::string(90, 'x'),
                                          some_words(30),
                                          some_words(80) + "\n\n",
                                          "Mr. ",
                                          "\xE3\x80\x80\n",
                                          "?! \xE2\x80\x9D "};
  std::mt19937 random(7);
  for (int round = 0; round < 400; ++round) {
    std::string text = round % 5 == 0 ? "\xEF\xBB\xBF" : "";
    for (auto n = random() % 80; n > 0; --n) text += parts[random() % parts.size()];
    for (const SpanOptions o : {SpanOptions{}, SpanOptions{5, 20}, SpanOptions{1, 4}}) {
      for (const auto media : {Media::text, Media::code}) {
        check(text, media, words, o);
        check(text, media, quarter, o, false);
      }
      if (::testing::Test::HasFatalFailure()) FAIL() << "round " << round << ": " << text;
    }
  }
}

TEST(Spans, EveryByteIsCountedAtMostAFewTimes) {
  std::string text;
  for (int i = 0; i < 400; ++i)
    text += some_words(i % 3 == 0 ? 400 : 30, i % 5 == 0 ? "Word" : "word") + "\n\n";
  text += std::string(100'000, 'x');
  std::size_t counted = 0;
  cut_spans(text, Media::text, [&](std::string_view s) {
    counted += s.size();
    return quarter(s);
  });
  EXPECT_LE(counted, 3 * text.size());
}

TEST(Spans, TenMegabytesInTwoSecondsOfAnyShape) {
  const auto grow = [](const std::string& part, std::size_t bytes = 2'000'000) {
    std::string out;
    while (out.size() < bytes) out += part;
    return out;
  };
  // Ten megabytes of what is common, two of what is built to be slow.
  const std::vector<std::pair<std::string, std::string>> shapes = {
      {"paragraphs", grow(some_words(120) + "\n\n", 10'000'000)},
      {"one line", grow("Some words here. ", 10'000'000)},
      {"lines", grow(some_words(8) + "\n", 10'000'000)},
      {"solid", grow("xxxxxxxxxx")},
      {"tiny", grow("a\n\n")},
      {"headings", grow("# a\n")},
      {"fences", grow("```x\n")},
      {"dots", grow(". ")},
      {"spaces", grow("          ") + "x"},
      {"short", grow(some_words(3) + "\n\n")}};
#ifdef __SANITIZE_ADDRESS__
  const double limit = 30;
#else
  const double limit = 2;
#endif
  for (const auto& [name, text] : shapes) {
    for (const auto media : {Media::text, Media::code}) {
      // Time of the processor, not of the clock: other tests run beside this one.
      const auto start = std::clock();
      const auto n = cut_spans(text, media, quarter).size();
      const auto took = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
      EXPECT_GT(n, 0U);
      EXPECT_LT(took, limit) << name << " as " << media_name(media);
      RecordProperty(name + "_" + std::string(media_name(media)) + "_ms",
                     static_cast<int>(1000 * took));
    }
  }
}

TEST(Sentences, EndWhereTheyEnd) {
  const auto split = [](std::string_view s) {
    std::vector<std::string> out;
    for (std::size_t at = 0; at < s.size();) {
      const auto next = text::next_sentence(s, at);
      EXPECT_GT(next, at);
      out.emplace_back(s.substr(at, next - at));
      at = next;
    }
    return out;
  };
  using V = std::vector<std::string>;
  EXPECT_EQ(split("One. Two! Three? Four"), (V{"One. ", "Two! ", "Three? ", "Four"}));
  EXPECT_EQ(split("Dr. J. Smith et al. saw it, e.g. on p. 5. He left."),
            (V{"Dr. J. Smith et al. saw it, e.g. on p. 5. ", "He left."}));
  EXPECT_EQ(split("He said \"No.\" Then (perhaps.) He left... and came back."),
            (V{"He said \"No.\" ", "Then (perhaps.) ", "He left... and came back."}));
  EXPECT_EQ(split("It cost 3.50 at example.com. Fine."),
            (V{"It cost 3.50 at example.com. ", "Fine."}));
  for (const char* end : {"So.", "(So.)", "He said \"no!\"", "list:", "第二！", "**Bold.**"})
    EXPECT_TRUE(text::ends_sentence(end)) << end;
  for (const char* end : {"", "O", "A title", "and,", "(see", "\""})
    EXPECT_FALSE(text::ends_sentence(end)) << end;
  EXPECT_EQ(split("第一。第二！"), (V{"第一。", "第二！"}));
  EXPECT_EQ(split("पहला। दूसरा।"), (V{"पहला। ", "दूसरा।"}));
}

}  // namespace
}  // namespace mneme
