#include "mneme/train/schedule.h"

#include <algorithm>

namespace mneme::train {

double warm_up(std::int64_t step, std::int64_t warmup) {
  if (warmup == 0) return 1;
  return std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(warmup));
}

}  // namespace mneme::train
