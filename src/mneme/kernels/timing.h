// How much of a program's time is spent within kernels: off until somebody measures.
#pragma once

#include <cstdint>

namespace mneme::kernels {

/// Counts from here on (or no longer) what calls of kernels on this thread take. Starts at zero.
void time_kernels(bool on) noexcept;

/// Seconds within kernels that this thread called since time_kernels(true); calls within calls count once.
[[nodiscard]] double seconds_in_kernels() noexcept;

/// Stands at the top of every kernel's wrapper: its life is what is counted.
class Timed {
 public:
  Timed() noexcept;
  ~Timed();
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  std::int64_t began_;  // nanoseconds; 0: not counted
};

}  // namespace mneme::kernels
