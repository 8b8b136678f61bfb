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

class Cosine final : public FallingSchedule {
 public:
  using FallingSchedule::FallingSchedule;

 private:
  [[nodiscard]] double left(double done) const override {
    return (1 + std::cos(std::numbers::pi * done)) / 2;
  }
};

void enrol(Registry& r) {
  r.add<Schedule, Cosine>("cosine", "a learning rate that falls on half a wave");
}

}  // namespace mneme::train::cosine
