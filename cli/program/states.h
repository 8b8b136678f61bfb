// The states of a memory, as people see them.
#pragma once

#include "mneme/memory/memory_file.h"

#include <string>
#include <string_view>

namespace mneme::cli {

/// "of 94 spans 40 have states, 16 of them made smaller for the budget; 54 are text only": numbers that add up.
std::string describe_states(const Usage& usage);

/// A KV spec with every option in it, defaults too: "quantize(bits=8)" for "quantize", which programs know it by. A spec
/// that this program cannot build is given back as it is.
std::string spelled_out(std::string_view kv);

}  // namespace mneme::cli
