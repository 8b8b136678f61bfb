#include "bench/speed/turns.h"

#include "mneme/core/error.h"

#include <algorithm>

namespace mneme::bench {

Timing timing_of(std::vector<double> rounds) {
  MNEME_ASSERT(!rounds.empty());
  auto sorted = rounds;
  std::sort(sorted.begin(), sorted.end());
  const auto n = sorted.size();
  const auto median = n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
  return {median, sorted.front(), sorted.back(), std::move(rounds)};
}

std::vector<Timing> in_turns(std::span<const std::function<double()>> sides, std::int64_t rounds,
                             const std::function<void()>& between) {
  MNEME_ASSERT(rounds > 0);
  std::vector<std::vector<double>> seconds(sides.size());
  for (std::int64_t round = -1; round < rounds; ++round) {
    for (std::size_t i = 0; i < sides.size(); ++i) {
      between();
      const double took = sides[i]();
      if (round >= 0) seconds[i].push_back(took);
    }
  }
  std::vector<Timing> out;
  for (auto& each : seconds) out.push_back(timing_of(std::move(each)));
  return out;
}

}  // namespace mneme::bench
