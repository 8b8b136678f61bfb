// kv_plan: a KV plan for one model, with the numbers of its heads where stages need them.
#pragma once

#include "mneme/kv/plan.h"

#include <memory>
#include <string_view>

namespace mneme {

struct LanguageModel;

/// Throws Error(usage) as KvPlan, and with the command that measures them where the model's numbers are missing.
std::shared_ptr<const KvPlan> kv_plan(const Chain& chain, const LanguageModel& model);
std::shared_ptr<const KvPlan> kv_plan(std::string_view spec, const LanguageModel& model);

}  // namespace mneme
