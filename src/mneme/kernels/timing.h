// How much of a program's time is spent within kernels: off until somebody measures.
#pragma once

#include <cstdint>

namespace mneme::kernels {

/// Counts from here on (or no longer) what calls of kernels on this thread take. Starts at zero.
void time_kernels(bool on) noexcept;

/// Seconds within kernels that this thread called since time_kernels(true); calls within calls count once.
[[nodiscard]] double seconds_in_kernels() noexcept;

/// Stands in every kernel's wrapper where the work is handed out, behind what checks and plans it: its life is what is
/// counted, the waking of threads and the waiting for the last of them with it.
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
