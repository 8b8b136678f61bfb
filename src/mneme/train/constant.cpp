// constant: the learning rate as it is.
//
// spec      constant(warmup=0)
#include "mneme/core/registry.h"
#include "mneme/train/schedule.h"

namespace mneme::train::constant {

class Constant final : public Schedule {
 public:
  struct Options {
    std::int64_t warmup = 0;
  };
  static void describe(Describe& d, Options& o) {
    d("warmup", o.warmup, at_least(0), "steps over which it rises first");
  }
  explicit Constant(const Options& o) : o_(o) {}
  [[nodiscard]] double factor(std::int64_t step, double) const override {
    return warm_up(step, o_.warmup);
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<Schedule, Constant>("constant", "the same learning rate throughout");
}

}  // namespace mneme::train::constant
