#include "mneme/search/fusion.h"

#include "mneme/core/error.h"

#include <algorithm>
#include <fmt/format.h>
#include <unordered_map>
#include <unordered_set>

namespace mneme::search {

std::vector<Fused> reciprocal_rank_fusion(std::span<const std::vector<std::int64_t>> lists,
                                          double k, std::int64_t limit) {
  if (!(k >= 0))
    throw Error(Errc::invalid, fmt::format("reciprocal-rank fusion with k={}: wanted k >= 0", k));
  std::unordered_map<std::int64_t, double> scores;
  for (const auto& list : lists) {
    std::unordered_set<std::int64_t> seen;
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (seen.insert(list[i]).second) scores[list[i]] += 1.0 / (k + static_cast<double>(i) + 1.0);
    }
  }
  std::vector<Fused> out;
  out.reserve(scores.size());
  for (const auto& [id, score] : scores) out.push_back({id, score});
  std::sort(out.begin(), out.end(), [](const Fused& a, const Fused& b) {
    return a.rrf != b.rrf ? a.rrf > b.rrf : a.id < b.id;
  });
  if (static_cast<std::int64_t>(out.size()) > limit)
    out.resize(static_cast<std::size_t>(std::max<std::int64_t>(limit, 0)));
  return out;
}

}  // namespace mneme::search
