// Calibrated pipelines: those whose stages need numbers of the model's heads, measured here and now on a text that nothing
// else is measured on, so that a suite shows the same on a machine where nothing was calibrated.
#pragma once

#include "mneme/kv/head_profile.h"
#include "mneme/models/language_model.h"

#include "bench/kv/pipelines.h"
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace mneme::bench {

/// Numbers of a model's heads; no file is read or written for them.
struct MeasuredHeads {
  std::shared_ptr<const HeadProfile> profile;
  std::string source;  ///< the book that they were measured on
};

/// Runs a calibration, a spec, over `tokens` tokens of a book of the authors of the split "train". Throws as sample_texts
/// and Calibration::run.
MeasuredHeads measure_heads(const LanguageModel& model, std::string_view calibration,
                            const std::filesystem::path& data, std::int64_t tokens,
                            std::uint64_t seed, const std::function<void()>& between);

/// The pipeline of a spec, with these numbers where its stages need some. Throws as KvPlan.
Pipeline calibrated_pipeline(std::string_view spec, std::shared_ptr<const HeadProfile> profile);

}  // namespace mneme::bench
