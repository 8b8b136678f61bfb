// Pipelines: the ways of keeping keys and values that a suite sets side by side.
#pragma once

#include "mneme/kv/plan.h"
#include "mneme/models/language_model.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::bench {

/// One way of keeping keys and values.
struct Pipeline {
  std::string name;                    ///< its spec, canonical; "full" for the first
  std::shared_ptr<const KvPlan> plan;  ///< null: everything stays as it was computed
};

inline constexpr std::string_view kFullCache = "full";

/// The full cache, then each spec of a list separated by ';' (an empty list: the full cache alone). Throws Error(usage)
/// that says which of the list is wrong, counted from 1, and why. Without a model, plans that need numbers of its heads are
/// made without them: good for a look at the list before a model is loaded.
std::vector<Pipeline> parse_pipelines(std::string_view specs, const LanguageModel* model = nullptr);

}  // namespace mneme::bench
