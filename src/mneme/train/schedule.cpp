#include "mneme/train/schedule.h"

#include <algorithm>

namespace mneme::train {

double warm_up(std::int64_t step, std::int64_t warmup) {
  if (warmup == 0) return 1;
  return std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(warmup));
}

void FallingSchedule::describe(Describe& d, Options& o) {
  d("warmup", o.warmup, at_least(0), "steps over which it rises first");
  d("floor", o.floor, within(0, 1), "share of the learning rate at the end");
}

double FallingSchedule::factor(std::int64_t step, double done) const {
  return warm_up(step, o_.warmup) * (o_.floor + (1 - o_.floor) * left(done));
}

}  // namespace mneme::train
