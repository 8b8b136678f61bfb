// Gradients: the loss of a batch and what it asks of every trained weight, in bounded memory.
//
// With activation checkpointing the layers are run in groups. Of the first run only the hidden
// states between groups stay; backward takes the groups from the last to the first, runs each again
// from its hidden states, and goes back through it. Both runs take the same path, so the values are
// those of a pass that keeps everything.
#pragma once

#include "mneme/core/generator.h"
#include "mneme/models/model.h"
#include "mneme/train/objective.h"
#include "mneme/train/packing.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mneme {

/// One term of a loss.
struct WeightedObjective {
  std::string name;  ///< as logs show it
  std::shared_ptr<const Objective> objective;
  double weight = 1;
};

/// A loss as numbers.
struct LossValue {
  double total = 0;
  std::vector<std::pair<std::string, double>> terms;  ///< by name, before their weights
};

/// How a batch is run.
struct GradientOptions {
  std::int64_t checkpoint_layers = 0;  ///< layers in a group that is run again; 0: keep everything
  Generator generator{};               ///< of the layers that draw numbers
  std::function<void()> between = [] {};  ///< called between groups; what it throws ends the pass
};

/// Adds `share` times the gradient of the loss to the gradient of every weight that requires one.
/// Throws Error(invalid) where the loss is not a finite number, before anything is added.
LossValue add_gradients(const Model& model, const PackedExamples& examples,
                        const std::vector<WeightedObjective>& objectives, double share,
                        const GradientOptions& options);

}  // namespace mneme
