#include "mneme/kv/select_entries.h"

#include "mneme/kernels/page_view.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

namespace mneme {
namespace {

constexpr std::int64_t kPage = kernels::kPageEntries;

/// to[e] = max(to[e], sum_c q[c] x[c,e]) for the entries of a page; the highest of nothing is the lowest number.
void raise_to_products(const float* q, const float* x, std::int64_t r, float* to) {
  constexpr std::int64_t kTogether = 16;  // sums that stay in registers
  for (std::int64_t first = 0; first < kPage; first += kTogether) {
    float sums[kTogether] = {};
    for (std::int64_t c = 0; c < r; ++c) {
      const auto* row = x + c * kPage + first;
      for (std::int64_t e = 0; e < kTogether; ++e) sums[e] += q[c] * row[e];
    }
    for (std::int64_t e = 0; e < kTogether; ++e)
      to[first + e] = sums[e] > to[first + e] ? sums[e] : to[first + e];
  }
}

/// Appends the indices of the `count` highest scores, ascending.
void append_highest(const std::vector<float>& scores, std::size_t count, std::vector<float>& sorted,
                    std::vector<std::int32_t>& out) {
  if (count == 0) return;
  sorted = scores;
  const auto last = sorted.begin() + static_cast<std::ptrdiff_t>(count) - 1;
  std::nth_element(sorted.begin(), last, sorted.end(), std::greater<>());
  const auto least = *last;
  auto equals = static_cast<std::ptrdiff_t>(count) -
                std::count_if(sorted.begin(), last, [&](float x) { return x > least; });
  out.reserve(count);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] > least || (scores[i] == least && equals-- > 0))
      out.push_back(static_cast<std::int32_t>(i));
  }
}

}  // namespace

void transpose_page(const float* keys, std::int64_t r, float* to) {
  for (std::int64_t e = 0; e < kPage; ++e) {
    for (std::int64_t c = 0; c < r; ++c) to[c * kPage + e] = keys[e * r + c];
  }
}

void select_entries(const SelectStage::Query& query, const float* queries, std::int64_t r,
                    double keep, bool together, SelectStage::Selected& out) {
  const auto pages = query.summaries.size(), n = pages * static_cast<std::size_t>(kPage);
  const auto count =
      std::min(n, static_cast<std::size_t>(std::ceil(keep * static_cast<double>(n))));
  out.pages.clear();
  if (count == n) {
    out.entries.clear();
    out.pages.resize(pages);
    std::iota(out.pages.begin(), out.pages.end(), 0);
    return;
  }
  thread_local std::vector<float> scores, sorted;
  const auto lists = together ? 1 : query.group, of_list = query.group / lists;
  out.entries.resize(static_cast<std::size_t>(lists));
  for (std::int64_t list = 0; list < lists; ++list) {
    scores.assign(n, std::numeric_limits<float>::lowest());
    for (std::size_t p = 0; p < pages; ++p) {
      for (std::int64_t g = 0; g < of_list; ++g)
        raise_to_products(queries + (list + g) * r, query.summaries[p], r,
                          scores.data() + p * static_cast<std::size_t>(kPage));
    }
    auto& entries = out.entries[static_cast<std::size_t>(list)];
    entries.clear();
    append_highest(scores, count, sorted, entries);
  }
}

}  // namespace mneme
