// Architectures: how a checkpoint's configuration becomes a model spec and its weights' names become ours.
#pragma once

#include "mneme/core/params.h"
#include "mneme/core/spec.h"
#include "mneme/weights/checkpoint.h"

#include <memory>
#include <string>

namespace mneme {

class Model;

/// A checkpoint as the parts that a model is built from.
struct Architecture {
  std::string name;  ///< "llama", "bert"
  Stage spec;        ///< of kind "model"
};

/// Reads the configuration and puts the weights into `params` under the names that the spec's model asks for; nothing is
/// copied. Throws Error(unsupported) naming what this build has no part for: an architecture, scaled rotary positions,
/// or a weight that would change what the model computes and has no place.
Architecture load_architecture(const Checkpoint& checkpoint, Params& params);

/// The model of an architecture on the weights that load_architecture put into `params`. Throws Error(corrupt) naming a
/// weight that the checkpoint lacks, Error(mismatch) for one of other sizes than the configuration says.
std::unique_ptr<Model> build_model(const Checkpoint& checkpoint, const Architecture& architecture,
                                   Params& params);

}  // namespace mneme
