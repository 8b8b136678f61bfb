#include "mneme/core/checksum.h"

#include <gtest/gtest.h>
#include <random>
#include <string>
#include <vector>

namespace mneme {
namespace {

std::uint32_t crc(const std::string& text, std::uint32_t seed = 0) {
  return crc32c(std::as_bytes(std::span(text)), seed);
}

TEST(Crc32c, PublishedValues) {  // RFC 3720, B.4, and the check value of the CRC catalogue
  EXPECT_EQ(crc(""), 0u);
  EXPECT_EQ(crc("123456789"), 0xE3069283u);
  EXPECT_EQ(crc(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc(std::string(32, '\xff')), 0x62A8AB43u);
  std::string up, down;
  for (int i = 0; i < 32; ++i)
    up.push_back(static_cast<char>(i)), down.push_back(static_cast<char>(31 - i));
  EXPECT_EQ(crc(up), 0x46DD794Eu);
  EXPECT_EQ(crc(down), 0x113FDB5Cu);
}

TEST(Crc32c, EqualsTheDefinitionByBitsAtEveryLengthAndOffset) {
  const auto by_bits = [](std::span<const std::byte> bytes) {
    std::uint32_t x = ~0u;
    for (auto b : bytes) {
      x ^= static_cast<std::uint32_t>(b);
      for (int i = 0; i < 8; ++i) x = (x >> 1) ^ ((x & 1) ? 0x82F63B78u : 0u);
    }
    return ~x;
  };
  std::mt19937 random(1);
  std::vector<std::byte> bytes(80);
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  for (std::size_t begin = 0; begin < 9; ++begin) {
    for (std::size_t n = 0; begin + n <= bytes.size(); ++n) {
      const auto part = std::span<const std::byte>(bytes).subspan(begin, n);
      ASSERT_EQ(crc32c(part), by_bits(part)) << begin << " " << n;
    }
  }
}

TEST(Crc32c, PiecesGiveTheSameAsTheWhole) {
  const std::string text = "memory for language models, one piece after another";
  for (std::size_t cut = 0; cut <= text.size(); ++cut)
    EXPECT_EQ(crc(text.substr(cut), crc(text.substr(0, cut))), crc(text));
}

}  // namespace
}  // namespace mneme
