// What selecting stages have in common that choose single entries by their scores.
#pragma once

#include "mneme/kv/stage.h"

#include <cstdint>

namespace mneme {

/// Coordinates of a page's keys as select_entries reads them: that of entry e on axis c at [c,e]. keys [64,r], to [r,64].
void transpose_page(const float* keys, std::int64_t r, float* to);

/// The ceil(keep * n) entries, of n in the summarized pages, with the highest q'x, for each query head by itself or, where
/// `together`, for the group by the highest of its heads' products. `queries` [G,r]; the query's summaries are [r,64], as
/// transpose_page writes them. Of equals the first come first; NaN counts as the lowest.
void select_entries(const SelectStage::Query& query, const float* queries, std::int64_t r,
                    double keep, bool together, SelectStage::Selected& out);

}  // namespace mneme
