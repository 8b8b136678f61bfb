#include "mneme/core/generator.h"

#include <array>
#include <cmath>
#include <gtest/gtest.h>
#include <set>
#include <vector>

namespace mneme {
namespace {

/// Philox4x32-10 as its paper states it, for any counter and key.
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> c,
                                    std::array<std::uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t left = 0xD2511F53ull * c[0], right = 0xCD9E8D57ull * c[2];
    c = {static_cast<std::uint32_t>(right >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(right),
         static_cast<std::uint32_t>(left >> 32) ^ c[3] ^ k[1], static_cast<std::uint32_t>(left)};
    k = {k[0] + 0x9E3779B9u, k[1] + 0xBB67AE85u};
  }
  return c;
}

TEST(Generator, ReferenceGivesThePublishedKnownAnswers) {  // Random123, kat_vectors, philox4x32 10
  using Words = std::array<std::uint32_t, 4>;
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Generator, GivesTheKnownAnswerForSeedZero) {
  Generator g;
  for (auto word : {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}) EXPECT_EQ(g.next(), word);
}

TEST(Generator, EqualsTheReferenceForAnySeedAndCounter) {
  for (std::uint64_t seed : {1ull, 0x299f31d0a4093822ull, ~0ull}) {
    for (std::uint64_t counter : {0ull, 3ull, 4ull, 17ull, 0x400000003ull, ~0ull - 8}) {
      Generator g(seed, counter);
      for (std::uint64_t i = counter; i < counter + 6; ++i) {
        const std::uint64_t block = i / 4;
        const auto words = philox(
            {static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), 0, 0},
            {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
        ASSERT_EQ(g.next(), words[i % 4]) << seed << " " << i;
      }
    }
  }
}

TEST(Generator, ResumesFromItsTwoNumbers) {
  Generator a(42);
  for (int i = 0; i < 7; ++i) (void)a.normal();
  Generator b(a.seed(), a.counter());
  EXPECT_EQ(a, b);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(a.uniform(), b.uniform());
}

TEST(Generator, SplitsDoNotDependOnUseAndDiffer) {
  Generator a(42);
  const auto before = a.split(5);
  (void)a.next();
  EXPECT_EQ(a.split(5), before);
  std::set<std::uint64_t> seeds{a.seed()};
  for (std::uint64_t purpose = 0; purpose < 1000; ++purpose) seeds.insert(a.split(purpose).seed());
  EXPECT_EQ(seeds.size(), 1001u);
  EXPECT_NE(a.split(1ull << 32).seed(), a.split(0).seed()) << "all 64 bits of the purpose count";
}

TEST(Generator, UniformIsUniform) {
  Generator g(3);
  constexpr int kBins = 64, kDraws = 64000;
  std::vector<int> bins(kBins);
  for (int i = 0; i < kDraws; ++i) {
    const double u = g.uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++bins[static_cast<std::size_t>(u * kBins)];
  }
  double chi2 = 0;
  for (int n : bins) chi2 += std::pow(n - 1000.0, 2) / 1000.0;
  EXPECT_LT(chi2, 110.0);  // 63 degrees of freedom: p < 0.0003 above
}

TEST(Generator, NormalHasItsMoments) {
  Generator g(4);
  double sums[5] = {};
  constexpr int kDraws = 100000;
  for (int i = 0; i < kDraws; ++i) {
    const double x = g.normal();
    ASSERT_TRUE(std::isfinite(x));
    for (int k = 1; k <= 4; ++k) sums[k] += std::pow(x, k) / kDraws;
  }
  EXPECT_NEAR(sums[1], 0.0, 0.015);
  EXPECT_NEAR(sums[2], 1.0, 0.02);
  EXPECT_NEAR(sums[3], 0.0, 0.05);
  EXPECT_NEAR(sums[4], 3.0, 0.15);
}

}  // namespace
}  // namespace mneme
