#include "mneme/models/kv_plan.h"

#include "mneme/models/language_model.h"
#include "mneme/models/profile.h"

namespace mneme {

std::shared_ptr<const KvPlan> kv_plan(const Chain& chain, const LanguageModel& model) {
  auto plan = std::make_shared<const KvPlan>(chain);
  if (plan->ready()) return plan;
  plan = std::make_shared<const KvPlan>(chain, head_profile(model));
  plan->check_profile();
  return plan;
}

std::shared_ptr<const KvPlan> kv_plan(std::string_view spec, const LanguageModel& model) {
  return kv_plan(parse_chain(spec), model);
}

}  // namespace mneme
