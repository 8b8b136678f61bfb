// Sampling: the flags by which people say how tokens are chosen.
#pragma once

#include "mneme/core/spec.h"
#include "mneme/decode/sampler.h"

#include "cli/program/flags.h"
#include <cstdint>
#include <string>

namespace mneme::cli {

struct Sampling {
  SamplerSettings settings;
  std::string spec;

  /// --temp, --top-k, --top-p, --min-p, --repeat-penalty, --repeat-window, and --sampler in place of them all.
  void declare(Flags& flags);
  /// The stages; empty for greedy. Throws Error(usage) for a bad spec, or for a spec beside other flags: `origins` say
  /// which of them were given. A --sampler that was typed goes before what the environment or a config file says.
  [[nodiscard]] Chain chain(const Origins& origins) const;
};

}  // namespace mneme::cli
