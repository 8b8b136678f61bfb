#include "bench/kv/calibrated.h"

#include "mneme/core/registry.h"
#include "mneme/probes/calibration.h"

#include "bench/kv/texts.h"
#include <utility>

namespace mneme::bench {

MeasuredHeads measure_heads(const LanguageModel& model, std::string_view calibration,
                            const std::filesystem::path& data, std::int64_t tokens,
                            std::uint64_t seed, const std::function<void()>& between) {
  const auto measures = registry().make<Calibration>(calibration);
  const auto text = sample_texts(data, "train", *model.tokenizer, tokens, 1, seed).front();
  const auto found =
      measures->run(model, {text.source, model.tokenizer->decode(text.ids, false)}, between);
  auto profile = std::make_shared<HeadProfile>();
  profile->model_digest = model.digest;
  for (const auto& [name, numbers] : found.numbers) {
    profile->numbers[name] = numbers;
    profile->measured[name] = found.how;
  }
  return {std::move(profile), text.source};
}

Pipeline calibrated_pipeline(std::string_view spec, std::shared_ptr<const HeadProfile> profile) {
  auto plan = std::make_shared<const KvPlan>(parse_chain(spec), std::move(profile));
  plan->check_profile();
  auto name = print(plan->chain());
  return {std::move(name), std::move(plan)};
}

}  // namespace mneme::bench
