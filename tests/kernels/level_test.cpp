#include "mneme/kernels/level.h"

#include "mneme/core/error.h"
#include "mneme/kernels/kernel_table.h"
#include "mneme/kernels/quantized.h"

#include "at_level.h"
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <gtest/gtest.h>

namespace mneme::kernels {
namespace {

TEST(Level, BaseIsAlwaysThereAndTheBestIsTheDefault) {
  const auto levels = supported_levels();
  ASSERT_FALSE(levels.empty());
  EXPECT_EQ(levels.front(), Level::base);
  EXPECT_TRUE(std::is_sorted(levels.begin(), levels.end()));
  if (std::getenv("MNEME_LEVEL") == nullptr) {
    EXPECT_EQ(level(), levels.back());
  }
}

TEST(Level, AllThatAreCompiledRunHere) {
  std::string lacking;
  for (const Level each : kLevels) {
    if (!runs_here(each)) lacking += (lacking.empty() ? "" : ", ") + std::string(name(each));
  }
  if (!lacking.empty())
    GTEST_SKIP() << "this CPU lacks the level " << lacking << ": no test here says anything of it";
}

TEST(Level, TablesAreCompiledForTheirLevel) {
  for (Level each : supported_levels()) {
    EXPECT_EQ(table(each).level, name(each));
    EXPECT_EQ(table(each).lanes, each == Level::base ? 4 : each == Level::avx2 ? 8 : 16);
  }
}

TEST(Level, Bf16ProductsOnlyWithTheirInstructions) {
  const Level before = level();
  for (Level each : supported_levels()) {
    set_level(each);
    EXPECT_EQ(has_bf16_products(), each == Level::avx512);
  }
  set_level(before);
}

TEST(Level, ALevelThatTheCpuLacksIsRefused) {
  for (Level each : {Level::avx2, Level::avx512}) {
    const auto levels = supported_levels();
    if (std::find(levels.begin(), levels.end(), each) != levels.end()) continue;
    EXPECT_THROW(set_level(each), Error);
  }
}

TEST(Level, CpuModelIsOneTrimmedLine) {
  const std::string model = cpu_model();
  ASSERT_FALSE(model.empty());
  EXPECT_NE(model.front(), ' ');
  EXPECT_NE(model.back(), ' ');
  EXPECT_EQ(model.find('\n'), std::string::npos);
}

// Sums of floats depend on how many lanes share them: the bits of a product are a fingerprint of the level.
std::vector<float> fingerprint() {
  constexpr std::int64_t kN = 16, kK = 1003;
  const auto w = normal_numbers(kN * kK, 1), x = normal_numbers(kK, 2);
  std::vector<float> y(kN, kNan);
  matvec(WeightType::f32, w.data(), kN, kK, x.data(), 1, y.data());
  return y;
}

TEST(Level, AForcedLevelReallyRuns) {
  const Level before = level();
  std::vector<std::vector<float>> prints;
  for (Level each : supported_levels()) {
    set_level(each);
    prints.push_back(fingerprint());
    // The table's own kernel, called past the dispatch, gives the same bits.
    constexpr std::int64_t kN = 16, kK = 1003;
    const auto w = normal_numbers(kN * kK, 1), x = normal_numbers(kK, 2);
    ActivationRows rows{};
    rows.x = x.data();
    rows.M = 1;
    rows.K = kK;
    std::vector<float> y(kN, kNan);
    table(each).matvec[0](reinterpret_cast<const std::uint8_t*>(w.data()), 0, kN, rows, y.data(),
                          kN);
    EXPECT_EQ(y, prints.back()) << name(each);
  }
  for (std::size_t i = 1; i < prints.size(); ++i) EXPECT_NE(prints[i], prints[i - 1]);
  set_level(before);
}

using LevelDeathTest = ::testing::Test;

// In a process of its own, because the variable is read once.
TEST(LevelDeathTest, TheEnvironmentForcesALevel) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  for (Level each : supported_levels()) {
    setenv("MNEME_LEVEL", std::string(name(each)).c_str(), 1);
    EXPECT_EXIT(
        std::exit(level() == each && std::strcmp(table().level, name(each).data()) == 0 ? 0 : 1),
        ::testing::ExitedWithCode(0), "");
  }
  unsetenv("MNEME_LEVEL");
}

TEST(LevelDeathTest, AnUnknownNameIsRefusedWithTheKnownOnes) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  setenv("MNEME_LEVEL", "sse9", 1);
  EXPECT_EXIT(
      {
        try {
          (void)level();
          std::exit(1);
        } catch (const Error& error) {
          std::fprintf(stderr, "%s", error.what());
          std::exit(error.code() == Errc::usage ? 0 : 1);
        }
      },
      ::testing::ExitedWithCode(0), "sse9.*base");
  unsetenv("MNEME_LEVEL");
}

}  // namespace
}  // namespace mneme::kernels
