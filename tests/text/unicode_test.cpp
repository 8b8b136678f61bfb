#include "mneme/text/unicode.h"

#include <gtest/gtest.h>
#include <random>

namespace mneme::text {
namespace {

TEST(Unicode, EveryCodePointComesBack) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string utf8;
    append_utf8(c, utf8);
    const auto step = next_code_point(utf8, 0);
    ASSERT_TRUE(step.valid) << std::hex << static_cast<std::uint32_t>(c);
    ASSERT_EQ(step.code_point, c);
    ASSERT_EQ(step.bytes, utf8.size());
    for (std::size_t n = 1; n < utf8.size(); ++n) {  // every start of it is cut, not broken
      const auto part = next_code_point(std::string_view(utf8).substr(0, n), 0);
      ASSERT_TRUE(!part.valid && part.cut && part.bytes == n);
    }
  }
}

TEST(Unicode, RefusesWhatIsNoCharacter) {
  for (const std::string bad :
       {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xED\xBF\xBF",
        "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xC3(", "\xE2\x82("}) {
    EXPECT_FALSE(is_valid_utf8(bad));
    EXPECT_FALSE(next_code_point(bad, 0).valid);
    EXPECT_FALSE(next_code_point(bad, 0).cut);
    EXPECT_EQ(valid_utf8_prefix("twelve bytes" + bad), 12u);
    EXPECT_EQ(valid_utf8_prefix("\u00e9" + bad), 2u);
  }
  std::string lone;
  append_utf8(0xD800, lone);
  EXPECT_EQ(lone, "\xEF\xBF\xBD");
}

TEST(Unicode, ReplacesTheLongestStartsOfBrokenCharacters) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(replace_invalid_utf8(""), "");
  EXPECT_EQ(replace_invalid_utf8("plain \u00e9"), "plain \u00e9");
  // Unicode's own example (table 3-8): 61 F1 80 80 E1 80 C2 62 80 63 80 BF 64.
  EXPECT_EQ(replace_invalid_utf8("a\xF1\x80\x80\xE1\x80\xC2"
                                 "b\x80"
                                 "c\x80\xBF"
                                 "d"),
            "a" + r + r + r + "b" + r + "c" + r + r + "d");
  EXPECT_EQ(replace_invalid_utf8("\xE2\x82"), r);
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), r + r + r);
}

TEST(Unicode, RepairedTextIsValidAndValidTextUntouched) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes(random() % 40, '\0');
    for (auto& byte : bytes)
      byte = static_cast<char>(random() % 3 == 0 ? random() & 0x7F : random() & 0xFF);
    const auto repaired = replace_invalid_utf8(bytes);
    ASSERT_TRUE(is_valid_utf8(repaired));
    ASSERT_EQ(replace_invalid_utf8(repaired), repaired);
    if (is_valid_utf8(bytes)) {
      ASSERT_EQ(repaired, bytes);
    }
  }
}

TEST(Unicode, Classes) {
  for (const char32_t c :
       {U' ', U'\t', U'\n', U'\u0085', U'\u00a0', U'\u2003', U'\u2029', U'\u3000'}) {
    EXPECT_TRUE(is_white_space(c)) << static_cast<std::uint32_t>(c);
  }
  for (const char32_t c : {U'a', U'\u180e', U'\u200b', U'\ufeff', U'\u001f'}) {
    EXPECT_FALSE(is_white_space(c)) << static_cast<std::uint32_t>(c);
  }
  for (const char32_t c : {U'7', U'\u00bd', U'\u0663', U'\u2167'}) EXPECT_TRUE(is_numeric(c));
  EXPECT_FALSE(is_numeric(U'x'));
}

}  // namespace
}  // namespace mneme::text
