// cosine: the learning rate falls on half a wave.
//
//   factor = min(1, (step + 1) / warmup) (floor + (1 - floor) (1 + cos(pi done)) / 2)
//
// spec      cosine(warmup=10, floor=0)
// source    Loshchilov & Hutter 2017, arXiv:1608.03983
// departs   one fall without restarts; the warm-up multiplies it
#include "mneme/core/registry.h"
#include "mneme/train/schedule.h"

#include <cmath>
#include <numbers>

namespace mneme::train::cosine {

class Cosine final : public Schedule {
 public:
  struct Options {
    std::int64_t warmup = 10;
    double floor = 0;
  };
  static void describe(Describe& d, Options& o) {
    d("warmup", o.warmup, at_least(0), "steps over which it rises first");
    d("floor", o.floor, within(0, 1), "share of the learning rate at the end");
  }
  explicit Cosine(const Options& o) : o_(o) {}
  [[nodiscard]] double factor(std::int64_t step, double done) const override {
    const auto wave = (1 + std::cos(std::numbers::pi * done)) / 2;
    return warm_up(step, o_.warmup) * (o_.floor + (1 - o_.floor) * wave);
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<Schedule, Cosine>("cosine", "a learning rate that falls on half a wave");
}

}  // namespace mneme::train::cosine
