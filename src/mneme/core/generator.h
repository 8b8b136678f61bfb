// A counter-based generator (Philox4x32-10): its whole state is two numbers, so it saves, forks and resumes exactly.
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
#pragma once

#include <cstdint>

namespace mneme {

class Generator {
 public:
  explicit Generator(std::uint64_t seed = 0, std::uint64_t counter = 0)
      : seed_(seed), counter_(counter) {}

  /// The next 32 random bits.
  std::uint32_t next() noexcept;
  /// Uniform in [0, 1) with 53 random bits.
  double uniform() noexcept;
  /// Standard normal (Box-Muller).
  double normal() noexcept;
  /// A generator of its own for a named purpose: independent of this one and of how often this one was used.
  [[nodiscard]] Generator split(std::uint64_t purpose) const noexcept;

  [[nodiscard]] std::uint64_t seed() const noexcept { return seed_; }
  [[nodiscard]] std::uint64_t counter() const noexcept { return counter_; }
  bool operator==(const Generator&) const = default;

 private:
  std::uint64_t seed_, counter_;
};

}  // namespace mneme
