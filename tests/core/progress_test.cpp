#include "mneme/core/progress.h"

#include <gtest/gtest.h>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace mneme {
namespace {

class ProgressTest : public ::testing::Test {
 protected:
  void TearDown() override { Progress::set_quiet(false); }

  Progress::Output output(bool terminal) {
    return {&stream_, terminal, false, [this] { return columns_; }, [this] { return now_; }};
  }
  /// What was written since the last call.
  std::string news() {
    auto text = stream_.str();
    stream_.str("");
    return text;
  }
  /// Drawings since the last call, as the terminal would show them.
  static std::vector<std::string> drawings(const std::string& text) {
    std::vector<std::string> lines;
    for (std::size_t at = 0; (at = text.find('\r', at)) != std::string::npos; ++at) {
      const auto end = text.find("\033[K", at);
      if (end > at + 1) lines.push_back(text.substr(at + 1, end - at - 1));
    }
    return lines;
  }

  std::ostringstream stream_;
  double now_ = 100;
  int columns_ = 100;
};

TEST_F(ProgressTest, PlainLinesComeEveryFiveSecondsWithRateAndTimeLeft) {
  Progress p("reading a.txt", 1000, "tokens", output(false));
  now_ = 104.9;
  p.advance(100);
  EXPECT_EQ(news(), "");
  now_ = 105;
  p.advance(150);
  EXPECT_EQ(news(), "reading a.txt: 250/1.00k tokens (25 %), 50 tokens/s, 0:15 left\n");
  now_ = 109.9;
  p.advance(1);
  EXPECT_EQ(news(), "");
  now_ = 120;
  p.advance(749);
  p.finish();
  const auto text = news();
  EXPECT_TRUE(text.ends_with("reading a.txt: 1.00k tokens in 20 s (50 tokens/s)\n")) << text;
  p.finish();
  EXPECT_EQ(news(), "");
}

TEST_F(ProgressTest, TheBarIsRedrawnAtMostTenTimesASecond) {
  Progress p("x", 10000, "tokens", output(true));
  news();
  for (int i = 0; i < 1000; ++i) {  // one second in steps of 1 ms
    now_ += 0.001;
    p.advance(1);
  }
  const auto n = drawings(news()).size();
  EXPECT_GE(n, 9U);
  EXPECT_LE(n, 10U);
}

TEST_F(ProgressTest, TheBarFillsInProportionAndKeepsToTheWidth) {
  for (const int columns : {1, 5, 20, 40, 60, 80, 200}) {
    columns_ = columns;
    Progress p("reading a rather long name.txt", 200, "tokens", output(true));
    p.note("chapter 3");
    now_ += 1;
    p.advance(100);
    for (const auto& line : drawings(news()))
      EXPECT_LT(static_cast<int>(line.size()), std::max(columns, 1) + (columns == 1)) << line;
  }
  columns_ = 120;
  Progress p("reading", 200, "tokens", output(true));
  now_ += 2;
  p.advance(100);
  EXPECT_EQ(
      drawings(news()).back(),
      "reading  [===============>              ]   50%  100/200 tokens  50 tokens/s  0:02 left");
}

TEST_F(ProgressTest, NamesAreClippedBetweenCharacters) {
  columns_ = 30;
  Progress p("\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9",
             200, "tokens", output(true));
  const auto line = drawings(news()).back();
  const auto name = line.substr(0, line.find("  "));
  EXPECT_EQ(name.size() % 2, 0U) << line;
  EXPECT_GT(name.size(), 0U);
  EXPECT_LT(name.size(), 20U);
}

TEST_F(ProgressTest, LineBreaksInNamesStayInTheLine) {
  Progress p("a\nb\rc", 2, "tokens", output(true));
  p.note("d\ne");
  now_ += 1;
  p.advance(1);
  const auto line = drawings(news()).back();
  EXPECT_TRUE(line.starts_with("a b c")) << line;
  EXPECT_TRUE(line.ends_with("d e")) << line;
}

TEST_F(ProgressTest, AnUnknownTotalShowsCountAndRateOnly) {
  Progress p("reading", 0, "bytes", output(true));
  now_ += 2;
  p.advance(3 << 20);
  EXPECT_EQ(drawings(news()).back(), "reading  3.00 MiB  1.50 MiB/s");
}

TEST_F(ProgressTest, MoreThanTheTotalIsNoError) {
  Progress p("x", 10, "spans", output(true));
  now_ += 1;
  p.advance(25);
  const auto line = drawings(news()).back();
  EXPECT_NE(line.find("100%  25/10 spans"), std::string::npos) << line;
  EXPECT_EQ(line.find("left"), std::string::npos) << line;
}

TEST_F(ProgressTest, TheRateFollowsTheRecentPast) {
  Progress p("x", 1'000'000, "tokens", output(false));
  for (int i = 0; i < 4; ++i) now_ += 5, p.advance(500);  // 100 a second
  EXPECT_NE(news().find(", 100 tokens/s"), std::string::npos);
  for (int i = 0; i < 8; ++i) now_ += 5, p.advance(5000);  // 1,000 a second
  const auto text = news();
  EXPECT_NE(text.substr(text.rfind("x: ")).find("k tokens/s"), std::string::npos)
      << text;  // the mean is 733
}

TEST_F(ProgressTest, AdvancesOfManyThreadsAddUp) {
  Progress p("x", 40000, "tokens",
             Progress::Output{&stream_, true, true, [] { return 80; },
                              Progress::Output::for_stderr().seconds});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&p] {
      for (int i = 0; i < 10000; ++i) p.advance(1);
      p.note("done");
    });
  }
  for (auto& t : threads) t.join();
  p.finish();
  EXPECT_NE(news().find("x: 40.0k tokens in "), std::string::npos);
}

TEST_F(ProgressTest, TheNewestBarIsDrawnAndTheOlderComesBack) {
  Progress outer("outer", 10, "files", output(true));
  {
    Progress inner("inner", 10, "tokens", output(true));
    news();
    now_ += 1;
    outer.advance(1);
    EXPECT_EQ(news(), "");
    inner.advance(10);
  }
  const auto text = news();
  EXPECT_NE(text.find("\r\033[Kinner: 10 tokens in 1.0 s (10 tokens/s)\n\router"),
            std::string::npos)
      << text;
}

TEST_F(ProgressTest, OtherLinesAreWrittenWithoutTheBarInTheWay) {
  Progress p("x", 10, "tokens", output(true));
  news();
  {
    const HiddenProgress hidden;
    const HiddenProgress nested;
    EXPECT_EQ(news(), "\r\033[K");
    now_ += 1;
    p.advance(1);
    EXPECT_EQ(news(), "");
  }
  EXPECT_EQ(drawings(news()).size(), 1U);
}

TEST_F(ProgressTest, WorkCutShortByAnExceptionSaysWhereItStopped) {
  try {
    Progress p("reading", 100, "tokens", output(false));
    p.advance(42);
    throw std::runtime_error("disk full");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(news(), "reading: stopped at 42/100 tokens\n");
}

TEST_F(ProgressTest, QuietIsSilent) {
  Progress::set_quiet(true);
  for (const bool terminal : {true, false}) {
    Progress p("x", 10, "tokens", output(terminal));
    now_ += 10;
    p.advance(5);
    p.finish();
    EXPECT_EQ(news(), "");
  }
}

TEST_F(ProgressTest, ColorIsUsedOnlyWhereAsked) {
  auto out = output(true);
  for (const bool color : {true, false}) {
    out.color = color;
    Progress p("x", 10, "tokens", out);
    EXPECT_EQ(news().find("\033[32m") != std::string::npos, color);
  }
}

}  // namespace
}  // namespace mneme
