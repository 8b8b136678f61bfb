#include "mneme/core/log.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <string>

namespace mneme::log {
namespace {

class Log : public ::testing::Test {
 protected:
  void TearDown() override { set_level(Level::warn); }

  template <class Body>
  static std::string written(Body body) {
    ::testing::internal::CaptureStderr();
    body();
    return ::testing::internal::GetCapturedStderr();
  }
};

struct Costly {
  int* formatted;
};

}  // namespace
}  // namespace mneme::log

template <>
struct fmt::formatter<mneme::log::Costly> : fmt::formatter<int> {
  template <class Context>
  auto format(const mneme::log::Costly& c, Context& context) const {
    return fmt::formatter<int>::format(++*c.formatted, context);
  }
};

namespace mneme::log {
namespace {

TEST_F(Log, WritesWarningsAndErrorsAsOneNamedLineEach) {
  set_level(Level::warn);
  EXPECT_EQ(written([] {
              error("no file '{}'", "a.txt");
              warn("{} spans dropped", 3);
              info("not shown");
            }),
            "error: no file 'a.txt'\nwarning: 3 spans dropped\n");
}

TEST_F(Log, FormatsNothingThatIsNotEnabled) {
  int formatted = 0;
  set_level(Level::info);
  EXPECT_EQ(written([&] { debug("{}", Costly{&formatted}); }), "");
  EXPECT_EQ(formatted, 0);
  set_level(Level::debug);
  EXPECT_NE(written([&] { debug("{}", Costly{&formatted}); }).find("debug: 1\n"),
            std::string::npos);
  EXPECT_EQ(formatted, 1);
}

TEST_F(Log, CarriesTheTimeOnlyWhereItIsReadLaterOrClosely) {
  const auto timed = [](Level level) {
    set_level(level);
    return written([] { error("x"); }).starts_with("[20");
  };
  EXPECT_FALSE(timed(Level::error));
  EXPECT_FALSE(timed(Level::warn));
  EXPECT_TRUE(timed(Level::info));  // captured, so not a terminal
  EXPECT_TRUE(timed(Level::trace));
}

TEST_F(Log, MessagesAreNotFormatStrings) {
  EXPECT_EQ(written([] { write(Level::error, "{} %v {"); }), "error: {} %v {\n");
}

TEST_F(Log, OffIsSilentAndIsNoLevelToWriteAt) {
  set_level(Level::off);
  EXPECT_EQ(written([] { error("x"); }), "");
  EXPECT_FALSE(enabled(Level::off));
}

TEST_F(Log, NamesReadBackAndUnknownOnesAreRefusedWithTheList) {
  ASSERT_EQ(level_names().size(), 6U);
  for (const auto& name : level_names()) EXPECT_TRUE(parse_level(name).ok()) << name;
  EXPECT_EQ(parse_level("warn").value(), Level::warn);
  const auto bad = parse_level("loud");
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().code(), Errc::usage);
  EXPECT_STREQ(bad.error().what(),
               "no log level 'loud': use one of off, error, warn, info, debug, trace");
  EXPECT_FALSE(parse_level("WARN").ok());
  EXPECT_FALSE(parse_level("").ok());
}

}  // namespace
}  // namespace mneme::log
