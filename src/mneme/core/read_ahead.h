// Between two steps of decoding all weights pass through the caches, and push out the small objects that lead to them: each
// costs a wait for memory, hundreds a step. But steps read them in the same order. So this thread notes what a step reads,
// and the next step has each line asked for some reads before it comes to it, most often before another kernel.
#pragma once

#include <array>
#include <cstddef>

namespace mneme {

/// Addresses in the order of reading. Hints only: a wrong one costs a read of memory that nobody needed, and addresses of
/// what is gone are never read from.
class ReadAhead {
 public:
  /// A step begins.
  void begin() noexcept { next_ = 0; }
  /// `line` is read now. Returns the one that it asks for: what the last step read kAhead reads later, null if unknown.
  const void* note(const void* line) noexcept {
    if (next_ == kMost) return nullptr;
    const void*& noted = lines_[next_];
    if (noted != line) noted = line;
    const void* expected = lines_[next_++ + kAhead];
    __builtin_prefetch(expected);
    return expected;
  }

  static constexpr std::size_t kMost = 4096;  ///< reads of a step that are noted
  static constexpr std::size_t kAhead = 24;

 private:
  std::array<const void*, kMost + kAhead> lines_{};
  std::size_t next_ = 0;
};

inline thread_local constinit ReadAhead read_ahead;

}  // namespace mneme
