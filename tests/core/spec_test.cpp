#include "mneme/core/spec.h"

#include "mneme/core/error.h"

#include <cmath>
#include <gtest/gtest.h>
#include <random>
#include <string>

namespace mneme {
namespace {

std::string refusal(std::string_view text) {
  try {
    (void)parse_chain(text);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Errc::usage) << text;
    return e.what();
  }
  ADD_FAILURE() << "was accepted: " << text;
  return {};
}

bool says(const std::string& message, std::string_view part) {
  return message.find(part) != std::string::npos;
}

/// Random specs over the whole grammar, at most `room` brackets deep.
class RandomSpec {
 public:
  explicit RandomSpec(unsigned seed) : random_(seed) {}

  Chain chain(int room) {
    Chain out;
    for (auto n = 1 + below(3); n > 0; --n) out.push_back(stage(room));
    return out;
  }

 private:
  std::int64_t below(std::int64_t n) {
    return std::uniform_int_distribution<std::int64_t>(0, n - 1)(random_);
  }

  std::string name() {
    static constexpr std::string_view kFirst = "abcxyzABC_", kRest = "abcxyz_0129.-";
    std::string out(1, kFirst[static_cast<std::size_t>(below(kFirst.size()))]);
    for (auto n = below(8); n > 0; --n)
      out.push_back(kRest[static_cast<std::size_t>(below(kRest.size()))]);
    return out;
  }
  Stage stage(int room) {
    Stage out{name(), {}};
    if (room == 0) return out;
    for (auto n = below(4); n > 0; --n)
      out.arguments.push_back({below(2) ? name() : "", value(room - 1)});
    return out;
  }
  Value value(int room) {
    switch (below(room > 0 ? 7 : 4)) {
      case 0:
        return {std::uniform_int_distribution<std::int64_t>(INT64_MIN, INT64_MAX)(random_)};
      case 1:
        return {below(2000) - 1000};
      case 2:
        return {real()};
      case 3:
        return {string()};
      case 4:
        return {stage(room)};
      case 5: {
        Value::List list;
        for (auto n = below(4); n > 0; --n) list.push_back(value(room - 1));
        return {std::move(list)};
      }
      default:
        return {below(6) ? chain(room - 1) : Chain{}};
    }
  }
  double real() {
    while (true) {
      const double magnitude = std::pow(10.0, std::uniform_real_distribution<>(-300, 300)(random_));
      const double x = (below(2) ? 1 : -1) * magnitude;
      if (x != std::floor(x) || std::abs(x) >= 0x1p63) return x;
    }
  }
  std::string string() {
    std::string out;
    for (auto n = below(6); n > 0; --n) {
      static constexpr std::string_view kOften = "\"\\ ,()[]{}|;=\n";
      out.push_back(below(2) ? kOften[static_cast<std::size_t>(below(kOften.size()))]
                             : static_cast<char>(below(256)));
    }
    return out;
  }
  std::mt19937 random_;
};

TEST(Spec, ParsesTheExampleOfTheDesign) {
  const auto chain = parse_chain("score(qfilter) | keep(ratio=0.25, sinks=4) | quantize(bits=4)");
  ASSERT_EQ(chain.size(), 3u);
  EXPECT_EQ(chain[0], (Stage{"score", {{"", {Stage{"qfilter", {}}}}}}));
  EXPECT_EQ(chain[1], (Stage{"keep", {{"ratio", {0.25}}, {"sinks", {std::int64_t{4}}}}}));
  EXPECT_EQ(print(chain), "score(qfilter) | keep(ratio=0.25, sinks=4) | quantize(bits=4)");
}

TEST(Spec, PrintedSpecsParseBack) {
  RandomSpec random(7);
  for (int i = 0; i < 3000; ++i) {
    const auto chain = random.chain(1 + i % 5);
    const auto text = print(chain);
    const auto back = parse_chain(text);
    ASSERT_EQ(back, chain) << text;
    ASSERT_EQ(print(back), text);
  }
}

TEST(Spec, SpaceDoesNotMatter) {
  EXPECT_EQ(parse_chain("  a ( x = 1 ,\n\t[ 2 , 3 ] ) |b( ) "), parse_chain("a(x=1,[2,3])|b"));
}

TEST(Spec, NumbersWithoutFractionAreIntegersHoweverWritten) {
  const auto value = [](const std::string& text) {
    return parse_stage("a(" + text + ")").arguments[0].value;
  };
  for (const auto* text : {"4", "+4", "4.0", "0.4e1", "40e-1", "4."})
    EXPECT_EQ(value(text), Value{std::int64_t{4}}) << text;
  EXPECT_EQ(value("-.5"), Value{-0.5});
  EXPECT_EQ(value("1e3"), Value{std::int64_t{1000}});
  EXPECT_EQ(value("9223372036854775807"), Value{INT64_MAX});
  EXPECT_EQ(value("-9223372036854775808"), Value{INT64_MIN});
  EXPECT_EQ(value("9223372036854775808"), Value{9223372036854775808.0});
  EXPECT_EQ(value("9.8e15"), Value{std::int64_t{9800000000000000}});
  EXPECT_EQ(value("1e18"), Value{std::int64_t{1000000000000000000}});
  EXPECT_EQ(value("1e300"), Value{1e300});
}

TEST(Spec, EmptyListsAndChainsAreValues) {
  EXPECT_EQ(parse_stage("a([], {})"), (Stage{"a", {{"", {Value::List{}}}, {"", {Chain{}}}}}));
}

TEST(Spec, StringsHoldAnyBytes) {
  const std::string raw("q\"b\\n\n\0\xff,)|", 11);
  const Stage stage{"a", {{"s", {raw}}}};
  EXPECT_EQ(parse_stage(print(stage)), stage);
}

TEST(Spec, RefusalsNameTheColumnAndWhatIsWanted) {
  EXPECT_TRUE(says(refusal(""), "column 1: a name is expected"));
  EXPECT_TRUE(says(refusal("a |"), "column 4: a name is expected"));
  EXPECT_TRUE(says(refusal("a(x=1"), "column 6: ')' is expected"));
  EXPECT_TRUE(says(refusal("a(x=)"), "column 5: a name is expected"));
  EXPECT_TRUE(says(refusal("a(x="), "column 5: a value is expected"));
  EXPECT_TRUE(says(refusal("a(x=\"y)"), "the string is not closed"));
  EXPECT_TRUE(says(refusal("a(\"\\"), "the string is not closed"));
  EXPECT_TRUE(says(refusal("a(1e999)"), "column 3: a finite number is expected"));
  EXPECT_TRUE(says(refusal("a(-)"), "a finite number is expected"));
  EXPECT_TRUE(says(refusal("a(-inf)"), "a finite number is expected"));
  EXPECT_TRUE(says(refusal("a(+-5)"), "a finite number is expected"));
  EXPECT_TRUE(says(refusal("a b"), "column 3: unexpected 'b'"));
  EXPECT_TRUE(says(refusal("a([1,2)"), "column 7: ']' is expected"));
  EXPECT_TRUE(says(refusal("a({b)"), "column 5: '}' is expected"));
  EXPECT_TRUE(says(refusal("a(1,)"), "column 5: a name is expected"));
  EXPECT_TRUE(says(refusal("a(5x)"), "column 4: ')' is expected"));
  EXPECT_TRUE(says(refusal("4"), "a name is expected"));
}

TEST(Spec, DepthIsLimited) {
  const auto nested = [](int depth, const std::string& open, const std::string& close) {
    std::string text = "a";
    for (int i = 0; i < depth; ++i) text += open;
    text += "b";
    for (int i = 0; i < depth; ++i) text += close;
    return text;
  };
  EXPECT_EQ(parse_chain(nested(kMaxSpecDepth, "(a", ")")).size(), 1u);
  EXPECT_TRUE(says(refusal(nested(kMaxSpecDepth + 1, "(a", ")")), "nested deeper than 16"));
  EXPECT_NO_THROW((void)parse_chain("a(" + nested(kMaxSpecDepth - 1, "[", "]").substr(1) + ")"));
  EXPECT_TRUE(
      says(refusal("a(" + nested(kMaxSpecDepth, "[", "]").substr(1) + ")"), "nested deeper"));
  EXPECT_NO_THROW((void)parse_chain("a(" + nested(7, "{a(", ")}").substr(1) + ")"));
  EXPECT_TRUE(says(refusal("a(" + nested(8, "{a(", ")}").substr(1) + ")"), "nested deeper"));
  EXPECT_TRUE(says(refusal("a(" + std::string(60000, '[')), "nested deeper"));
  EXPECT_NO_THROW((void)parse_chain(
      "a([1],[2],[3],[4],[5],[6],[7],[8],[9],[10],[11],[12],[13],[14],[15],[16],[17],[18])"));
}

TEST(Spec, LengthIsLimited) {
  EXPECT_EQ(parse_stage(std::string(kMaxSpecBytes, 'a')).name.size(), kMaxSpecBytes);
  const auto message = refusal(std::string(kMaxSpecBytes + 1, 'a'));
  EXPECT_TRUE(says(message, "65537 bytes long, at most 65536"));
  EXPECT_LT(refusal(std::string(kMaxSpecBytes - 1, 'a') + "(").size(), 400u)
      << "a message quotes only the start";
}

TEST(Spec, ParseStageWantsExactlyOne) {
  try {
    (void)parse_stage("a | b");
    FAIL();
  } catch (const Error& e) {
    EXPECT_TRUE(says(e.what(), "a chain of 2 stages where one is expected"));
  }
}

TEST(Spec, ChainsAreSeparatedBySemicolons) {
  const auto chains = parse_chains("a(x=1) | b; c");
  ASSERT_EQ(chains.size(), 2u);
  EXPECT_EQ(print(chains[0]), "a(x=1) | b");
  EXPECT_EQ(print(chains[1]), "c");
  EXPECT_THROW((void)parse_chains("a;"), Error);
}

/// Whatever is thrown at it, a parse ends in a spec that prints and parses back or in Error(usage).
TEST(Spec, RandomTextNeverCrashes) {
  std::mt19937 random(3);
  constexpr std::string_view kAlphabet = "ab1(()[]{}||,=\"\\;.-+e \x80";
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (auto n = random() % 20; n > 0; --n) text.push_back(kAlphabet[random() % kAlphabet.size()]);
    try {
      const auto chain = parse_chain(text);
      ASSERT_EQ(parse_chain(print(chain)), chain) << text;
    } catch (const Error& e) {
      ASSERT_EQ(e.code(), Errc::usage);
    }
  }
}

}  // namespace
}  // namespace mneme
