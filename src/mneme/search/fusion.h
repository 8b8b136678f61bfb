// Joining ranked lists into one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mneme::search {

/// A span and the sum of its reciprocal ranks.
struct Fused {
  std::int64_t id = 0;
  double rrf = 0;
};

/// Reciprocal-rank fusion: score(id) = sum over the lists that hold it of 1 / (k + rank), rank from
/// 1 (Cormack, Clarke & Buettcher 2009). Best first, equal scores by id, at most `limit`. An id
/// that a list holds twice counts at its first place. Throws `invalid` for k < 0.
std::vector<Fused> reciprocal_rank_fusion(std::span<const std::vector<std::int64_t>> lists,
                                          double k, std::int64_t limit);

}  // namespace mneme::search
