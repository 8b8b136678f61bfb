// linear: the learning rate falls on a line.
//
//   factor = min(1, (step + 1) / warmup) (floor + (1 - floor) (1 - done))
//
// spec      linear(warmup=10, floor=0)
#include "mneme/core/registry.h"
#include "mneme/train/schedule.h"

namespace mneme::train::linear {

class Linear final : public FallingSchedule {
 public:
  using FallingSchedule::FallingSchedule;

 private:
  [[nodiscard]] double left(double done) const override { return 1 - done; }
};

void enrol(Registry& r) {
  r.add<Schedule, Linear>("linear", "a learning rate that falls on a line");
}

}  // namespace mneme::train::linear
