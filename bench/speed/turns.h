// Sides that are measured against each other take turns, so that whatever else the machine does meets all of them.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace mneme::bench {

/// Seconds of one side over all rounds.
struct Timing {
  double median = 0, least = 0, most = 0;
  std::vector<double> rounds;  ///< in the order in which they were run
};

/// Of at least one round.
Timing timing_of(std::vector<double> rounds);

/// Runs each side once to warm it, then all of them in turns, `rounds` times. A side gives the seconds that it took;
/// `between` is called before every one and throws to stop.
std::vector<Timing> in_turns(std::span<const std::function<double()>> sides, std::int64_t rounds,
                             const std::function<void()>& between);

/// Seconds that the work takes.
double seconds(const auto& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace mneme::bench
