// Schedule: how the learning rate changes while training goes on.
#pragma once

#include "mneme/core/describe.h"

#include <cstdint>
#include <memory>
#include <string_view>

namespace mneme {

class Schedule {
 public:
  static constexpr std::string_view kKind = "schedule";
  static constexpr std::string_view kKindHelp = "how the learning rate changes during training";
  using Make = std::unique_ptr<Schedule>();

  virtual ~Schedule() = default;
  /// What the learning rate is multiplied by, in [0, 1]: `step` counts from 0, `done` in [0, 1) is
  /// the share of the training before it.
  [[nodiscard]] virtual double factor(std::int64_t step, double done) const = 0;
};

namespace train {

/// The rise from nearly 0 to 1 over the first `warmup` steps.
double warm_up(std::int64_t step, std::int64_t warmup);

/// A learning rate that rises first and falls to a floor at the end, on a curve that the subclass
/// gives.
class FallingSchedule : public Schedule {
 public:
  struct Options {
    std::int64_t warmup = 10;
    double floor = 0;
  };
  static void describe(Describe& d, Options& o);
  explicit FallingSchedule(const Options& o) : o_(o) {}
  [[nodiscard]] double factor(std::int64_t step, double done) const final;

 private:
  /// How much of the way from the floor to the top is left: from 1 at `done` = 0 to 0 at 1.
  [[nodiscard]] virtual double left(double done) const = 0;

  Options o_;
};

}  // namespace train
}  // namespace mneme
