#include "bench/kv/evidence.h"

#include "mneme/kv/plan.h"

#include <algorithm>
#include <limits>

namespace mneme::bench {

std::vector<EntryRange> tokens_at(const Tokenizer& tokenizer, std::span<const std::int32_t> ids,
                                  std::int64_t bytes,
                                  std::span<const std::pair<std::int64_t, std::int64_t>> ranges) {
  std::vector<std::int64_t> ends;  // bytes of the text up to each token's end
  std::int64_t end = 0;
  for (const auto id : ids)
    ends.push_back(end += static_cast<std::int64_t>(tokenizer.token_bytes(id).size()));
  if (end != bytes) return {};
  std::vector<EntryRange> out;
  for (const auto& [from, to] : ranges) {
    if (from >= to) continue;
    const auto first = std::upper_bound(ends.begin(), ends.end(), from) - ends.begin();
    const auto last = std::upper_bound(ends.begin(), ends.end(), to - 1) - ends.begin();
    // Two ranges may share a token.
    const auto begin = out.empty() ? first : std::max(first, out.back().end);
    if (begin <= last) out.push_back({begin, last + 1});
  }
  return out;
}

double evidence_recall(const State& state, std::span<const EntryRange> evidence) {
  constexpr auto kUnknown = std::numeric_limits<double>::quiet_NaN();
  std::int64_t entries = 0, read = 0, heads = 0;
  for (const auto& range : evidence) entries += range.end - range.begin;
  for (const auto* store : kv_stores(state)) {
    for (std::int64_t h = 0; h < store->shape().heads; ++h, ++heads) {
      const auto readable = store->readable(0, h);
      if (!readable) return kUnknown;
      for (const auto& a : *readable) {
        for (const auto& b : evidence)
          read += std::max<std::int64_t>(0, std::min(a.end, b.end) - std::max(a.begin, b.begin));
      }
    }
  }
  if (entries == 0 || heads == 0) return kUnknown;
  return static_cast<double>(read) / static_cast<double>(entries * heads);
}

}  // namespace mneme::bench
