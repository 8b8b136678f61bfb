// A test that runs once at every level of this CPU.
#pragma once

#include "mneme/kernels/level.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <gtest/gtest.h>
#include <limits>
#include <random>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace mneme::kernels {

/// All that are compiled, whatever this CPU runs.
inline constexpr Level kLevels[] = {Level::base, Level::avx2, Level::avx512};

inline bool runs_here(Level level) {
  const auto levels = supported_levels();
  return std::find(levels.begin(), levels.end(), level) != levels.end();
}

/// At a level that this CPU lacks a test is skipped, and says so.
class AtLevel : public ::testing::TestWithParam<Level> {
 protected:
  void SetUp() override {
    before_ = level();
    if (!runs_here(GetParam()))
      GTEST_SKIP() << "the level " << name(GetParam()) << " does not run on this CPU";
    set_level(GetParam());
  }
  void TearDown() override { set_level(before_); }

 private:
  Level before_ = Level::base;
};

inline std::string level_name(const ::testing::TestParamInfo<Level>& info) {
  return std::string(name(info.param));
}

#define MNEME_AT_EVERY_LEVEL(suite)                                                 \
  INSTANTIATE_TEST_SUITE_P(, suite, ::testing::ValuesIn(::mneme::kernels::kLevels), \
                           ::mneme::kernels::level_name)

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline std::vector<float> normal_numbers(std::int64_t n, unsigned seed, float deviation = 1.f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.f, deviation);
  std::vector<float> numbers(static_cast<std::size_t>(n));
  for (float& x : numbers) x = normal(generator);
  return numbers;
}

/// A copy of bytes that ends where readable memory ends, so that reading past them is fatal.
class AtTheEnd {
 public:
  explicit AtTheEnd(const std::vector<std::uint8_t>& bytes) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t readable = (bytes.size() + page - 1) / page * page;
    size_ = readable + page;
    memory_ = static_cast<std::uint8_t*>(
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(static_cast<void*>(memory_), MAP_FAILED);
    EXPECT_EQ(mprotect(memory_ + readable, page, PROT_NONE), 0);
    data_ = memory_ + readable - bytes.size();
    if (!bytes.empty()) std::memcpy(data_, bytes.data(), bytes.size());
  }
  ~AtTheEnd() { munmap(memory_, size_); }
  AtTheEnd(const AtTheEnd&) = delete;
  AtTheEnd& operator=(const AtTheEnd&) = delete;
  [[nodiscard]] std::uint8_t* data() const { return data_; }

 private:
  std::uint8_t* memory_;
  std::uint8_t* data_;
  std::size_t size_;
};

/// Root mean square of the differences over that of the expected values.
template <class A, class B>
double relative_error(const std::vector<A>& got, const std::vector<B>& want) {
  EXPECT_EQ(got.size(), want.size());
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - static_cast<double>(want[i]), 2);
    size += std::pow(static_cast<double>(want[i]), 2);
  }
  return size == 0 ? std::sqrt(difference) : std::sqrt(difference / size);
}

}  // namespace mneme::kernels
