#include "mneme/weights/untrusted.h"

#include "scratch.h"
#include <limits>

namespace mneme::weights {
namespace {

using testing::expect_error;

TEST(CheckedProduct, RefusesWhatDoesNotFit) {
  constexpr auto kMax = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(checked_product({}), 1);
  EXPECT_EQ(checked_product({3, 5}), 15);
  EXPECT_EQ(checked_product({0, 5}), 0);
  EXPECT_EQ(checked_product({kMax}), kMax);
  EXPECT_EQ(checked_product({kMax, 2}), std::nullopt);
  EXPECT_EQ(checked_product({kMax, 2, 0}), std::nullopt) << "strides would overflow";
  EXPECT_EQ(checked_product({std::int64_t{1} << 32, std::int64_t{1} << 31}), std::nullopt);
  EXPECT_EQ(checked_product({-1}), std::nullopt);
  EXPECT_EQ(checked_product({0, -1}), std::nullopt);
}

TEST(Printable, KeepsOneShortLine) {
  EXPECT_EQ(printable("blk.0.weight"), "blk.0.weight");
  EXPECT_EQ(printable("a\nb\x1b\xff"), R"(a\x0ab\x1b\xff)");
  EXPECT_EQ(printable(std::string(1000, 'x')), std::string(96, 'x') + "...");
}

TEST(StaysInside, KnowsTheWaysOut) {
  EXPECT_TRUE(stays_inside("model-1.safetensors"));
  EXPECT_TRUE(stays_inside("a/b"));
  EXPECT_TRUE(stays_inside("..a/b.."));
  for (const auto* out : {"", "/a", "..", "../a", "a/../../b", "a/.."}) {
    EXPECT_FALSE(stays_inside(out)) << out;
  }
  EXPECT_FALSE(stays_inside(std::string("a\0b", 3)));
}

TEST(ParseJson, BoundsDepthAndCount) {
  EXPECT_EQ(parse_json("[1, [2]]", "f", {.depth = 2, .values = 10})[1][0], 2);
  expect_error(Errc::corrupt, "f: the JSON holds more",
               [] { parse_json("[[[[1]]]]", "f", {.depth = 2, .values = 10}); });
  expect_error(Errc::corrupt, "f: the JSON holds more",
               [] { parse_json("[1,2,3,4]", "f", {.depth = 2, .values = 4}); });
  expect_error(Errc::corrupt, "f: is not valid JSON at byte 3", [] { parse_json("[1", "f"); });
  expect_error(Errc::corrupt, "f: is not valid JSON", [] { parse_json("[1e999]", "f"); });
}

}  // namespace
}  // namespace mneme::weights
