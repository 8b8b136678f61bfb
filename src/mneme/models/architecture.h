// Architectures: how a checkpoint's configuration becomes a model spec and its weights' names become ours.
#pragma once

#include "mneme/core/params.h"
#include "mneme/core/spec.h"
#include "mneme/weights/checkpoint.h"

#include <string>

namespace mneme {

/// A checkpoint as the parts that a model is built from.
struct Architecture {
  std::string name;  ///< "llama", "bert"
  Stage spec;        ///< of kind "model"
};

/// Reads the configuration and puts the weights into `params` under the names that the spec's model asks for; nothing is
/// copied. Throws Error(unsupported) naming what this build has no part for (an architecture, scaled rotary positions).
Architecture load_architecture(const Checkpoint& checkpoint, Params& params);

}  // namespace mneme
