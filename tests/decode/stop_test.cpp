#include "mneme/decode/stop.h"

#include "mneme/core/error.h"

#include <gtest/gtest.h>
#include <random>

namespace mneme {
namespace {

struct Said {
  std::string text;
  bool stopped;
  bool operator==(const Said&) const = default;
};

Said say(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopStrings watch(stops);
  std::string out;
  for (const auto& piece : pieces) out += watch.push(piece);
  const bool stopped = watch.stopped();
  return {out + watch.finish(), stopped};
}

TEST(StopStrings, EndsTheTextBeforeTheFirst) {
  EXPECT_EQ(say({"\nUser:"}, {"hello\nUser: more"}), (Said{"hello", true}));
  EXPECT_EQ(say({"X", "lo"}, {"hello X"}), (Said{"hel", true}));
  EXPECT_EQ(say({"zzz"}, {"hello"}), (Said{"hello", false}));
  EXPECT_EQ(say({}, {"hello"}), (Said{"hello", false}));
  EXPECT_EQ(say({"hello"}, {"hello"}), (Said{"", true}));
}

TEST(StopStrings, HoldsBackOnlyWhatMayBecomeOne) {
  StopStrings watch({"STOP", "Top"});
  EXPECT_EQ(watch.push("a S"), "a ");
  EXPECT_EQ(watch.push("T"), "");
  EXPECT_EQ(watch.push("E"), "STE") << "it was not";
  EXPECT_EQ(watch.push("T"), "") << "may be the other";
  EXPECT_EQ(watch.push("x"), "Tx");
  EXPECT_EQ(watch.push("STO"), "");
  EXPECT_EQ(watch.push("Px"), "");
  EXPECT_TRUE(watch.stopped());
  EXPECT_EQ(watch.push("more"), "");
  EXPECT_EQ(watch.finish(), "");
}

TEST(StopStrings, OverlapsWithItself) {
  EXPECT_EQ(say({"aab"}, {"a", "a", "a", "b"}), (Said{"a", true}));
  EXPECT_EQ(say({"abab"}, {"ab", "a", "abab"}), (Said{"aba", true}));
}

TEST(StopStrings, TheOneCompleteFirstCounts) {
  EXPECT_EQ(say({"abcd", "bc"}, {"xabcd"}), (Said{"xa", true}));
  EXPECT_EQ(say({"bc", "abc"}, {"xabcd"}), (Said{"x", true}))
      << "of two that end together the longer";
}

TEST(StopStrings, FinishGivesWhatWasHeld) {
  StopStrings watch({"###"});
  EXPECT_EQ(watch.push("a##"), "a");
  EXPECT_EQ(watch.finish(), "##");
  EXPECT_FALSE(watch.stopped());
}

/// Against a scan by the definition, for any cut into pieces; and what is held is never more than needed.
TEST(StopStrings, CutsMakeNoDifference) {
  std::mt19937 random(1);
  const auto word = [&](std::size_t least, std::size_t most) {
    std::string out;
    for (auto n = least + random() % (most - least + 1); n > 0; --n)
      out.push_back(static_cast<char>('a' + random() % 2));
    return out;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (auto n = random() % 4; n > 0; --n) stops.push_back(word(1, 5));
    const auto text = word(0, 20);
    Said expected{text, false};
    for (std::size_t end = 1; end <= text.size() && !expected.stopped; ++end) {
      for (std::size_t begin = 0; begin < end && !expected.stopped; ++begin) {
        if (std::find(stops.begin(), stops.end(), text.substr(begin, end - begin)) != stops.end())
          expected = {text.substr(0, begin), true};
      }
    }
    std::vector<std::string> pieces;
    for (std::size_t at = 0; at < text.size();) {
      const auto n = std::min<std::size_t>(1 + random() % 4, text.size() - at);
      pieces.push_back(text.substr(at, n));
      at += n;
    }
    ASSERT_EQ(say(stops, pieces), expected) << text;
  }
}

TEST(StopStrings, RefusesAnEmptyOne) {
  try {
    StopStrings watch({"a", ""});
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Errc::usage);
  }
}

}  // namespace
}  // namespace mneme
