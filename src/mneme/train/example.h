// Example: one training sequence.
#pragma once

#include <cstdint>
#include <vector>

namespace mneme {

/// One training sequence: what the model reads, what may see what, and which tokens it is to say.
/// What a token sees is said by segments; within what its segment sees, order by position holds.
struct Example {
  std::vector<std::int32_t> ids;        ///< [T]
  std::vector<std::int64_t> positions;  ///< [T]; empty: 0, 1, ...
  std::vector<std::int32_t> segments;   ///< [T], from 0; empty: one segment
  /// Of each segment, the segments that it sees beside itself; empty: every segment sees the
  /// earlier ones.
  std::vector<std::vector<std::int32_t>> sees;
  /// [T]: weight of the loss of predicting ids[t + 1] after ids[t]; 0: not learned. The last is 0.
  std::vector<float> weights;

  [[nodiscard]] std::int64_t tokens() const { return static_cast<std::int64_t>(ids.size()); }
};

}  // namespace mneme
