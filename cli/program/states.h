// The states of a memory, as people see them.
#pragma once

#include "mneme/memory/memory_file.h"

#include <string>
#include <string_view>

namespace mneme::cli {

/// "of 94 spans 40 have states, 16 of them made smaller for the budget; 54 are text only": numbers that add up.
std::string describe_states(const Usage& usage);

}  // namespace mneme::cli
