// Schedule: how the learning rate changes while training goes on.
#pragma once

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

}  // namespace train
}  // namespace mneme
