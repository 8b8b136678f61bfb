#include "mneme/core/read_ahead.h"

#include <gtest/gtest.h>
#include <memory>

namespace mneme {
namespace {

TEST(ReadAhead, StepsOfAnyLengthAndOrderAndMemoryThatIsGoneDoNoHarm) {
  ReadAhead ahead;
  for (const int count : {10, 3, 100'000, 0, 5'000}) {
    ahead.begin();
    for (int i = 0; i < count; ++i) {
      const auto gone = std::make_unique<int>(i);
      ahead.note(i % 3 == 0 ? nullptr : gone.get());
    }
  }
}

}  // namespace
}  // namespace mneme
