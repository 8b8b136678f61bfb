// linear: the learning rate falls on a line.
//
//   factor = min(1, (step + 1) / warmup) (floor + (1 - floor) (1 - done))
//
// spec      linear(warmup=10, floor=0)
#include "mneme/core/registry.h"
#include "mneme/train/schedule.h"

namespace mneme::train::linear {

class Falling final : public Schedule {
 public:
  struct Options {
    std::int64_t warmup = 10;
    double floor = 0;
  };
  static void describe(Describe& d, Options& o) {
    d("warmup", o.warmup, at_least(0), "steps over which it rises first");
    d("floor", o.floor, within(0, 1), "share of the learning rate at the end");
  }
  explicit Falling(const Options& o) : o_(o) {}
  [[nodiscard]] double factor(std::int64_t step, double done) const override {
    return warm_up(step, o_.warmup) * (o_.floor + (1 - o_.floor) * (1 - done));
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<Schedule, Falling>("linear", "a learning rate that falls on a line");
}

}  // namespace mneme::train::linear
