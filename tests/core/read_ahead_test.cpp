#include "mneme/core/read_ahead.h"

#include <cstddef>
#include <gtest/gtest.h>
#include <vector>

namespace mneme {
namespace {

TEST(ReadAhead, AsksForWhatTheLastStepReadNext) {
  ReadAhead ahead;
  const std::vector<int> memory(100);
  ahead.begin();
  for (const auto& line : memory) EXPECT_EQ(ahead.note(&line), nullptr);
  ahead.begin();
  for (std::size_t i = 0; i < memory.size(); ++i) {
    const auto next = i + ReadAhead::kAhead;
    EXPECT_EQ(ahead.note(&memory[i]), next < memory.size() ? &memory[next] : nullptr) << i;
  }
}

TEST(ReadAhead, AStepInAnotherOrderIsWhatCountsForTheNext) {
  ReadAhead ahead;
  const std::vector<int> memory(100);
  ahead.begin();
  for (const auto& line : memory) ahead.note(&line);
  ahead.begin();
  for (std::size_t i = 0; i < 50; ++i) ahead.note(&memory[99 - i]);
  ahead.begin();
  EXPECT_EQ(ahead.note(&memory[0]), &memory[99 - ReadAhead::kAhead]);
}

TEST(ReadAhead, StepsMayBeLongerThanWhatIsNoted) {
  ReadAhead ahead;
  int line = 0;
  for (int step = 0; step < 2; ++step) {
    ahead.begin();
    for (std::size_t i = 0; i < 3 * ReadAhead::kMost; ++i) ahead.note(&line);
  }
  EXPECT_EQ(ahead.note(&line), nullptr);
}

}  // namespace
}  // namespace mneme
