// Every allocation of this program, counted: it stands in front of the C library's malloc, which operator new comes to too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mneme::check {

/// Whether allocations are counted here: with the GNU C library, outside of sanitizers.
[[nodiscard]] bool counts_allocations();

struct Allocations {
  std::int64_t all = 0;
  std::int64_t large = 0;  ///< of more than kLarge bytes
};
inline constexpr std::size_t kLarge = 1024;

/// Those of all threads so far.
[[nodiscard]] Allocations allocations();

}  // namespace mneme::check
