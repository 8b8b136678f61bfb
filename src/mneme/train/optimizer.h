// Optimizer: how gradients change weights.
#pragma once

#include "mneme/core/params.h"

#include <map>
#include <memory>
#include <string>
#include <string_view>

namespace mneme {

class Optimizer {
 public:
  static constexpr std::string_view kKind = "optimizer";
  static constexpr std::string_view kKindHelp = "how gradients change weights";
  using Make =
      std::unique_ptr<Optimizer>(const Params& weights);  ///< those that require grad learn

  virtual ~Optimizer() = default;
  /// The learning rate before any schedule.
  [[nodiscard]] virtual double rate() const = 0;
  /// Changes every weight that has a gradient, at this learning rate.
  virtual void step(double rate) = 0;
  /// Everything that the next step depends on beside weights and gradients, by name; the tensors
  /// are the optimizer's own.
  [[nodiscard]] virtual std::map<std::string, at::Tensor> state() const = 0;
  /// Takes copies of what `state` gave; throws Error(mismatch) if it belongs to other weights.
  virtual void load(const std::map<std::string, at::Tensor>& state) = 0;
};

}  // namespace mneme
