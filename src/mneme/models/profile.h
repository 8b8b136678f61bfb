// Head profiles: where the numbers lie that `mneme calibrate` measured on each head of a model.
#pragma once

#include "mneme/kv/head_profile.h"

#include <filesystem>
#include <memory>
#include <string>

namespace mneme {

struct LanguageModel;

/// The file of a model's head profile, there or not: <digest>.safetensors in the folder MNEME_PROFILES, else in
/// ${XDG_CACHE_HOME:-~/.cache}/mneme/profiles. Throws Error(not_found) where none of these is set, Error(invalid) for a
/// digest that is no name.
std::filesystem::path profile_path(const std::string& model_digest);

/// What was measured on this model; null where nothing was. Throws Error(mismatch) for a file that was measured on another
/// model, and as HeadProfile::load.
std::shared_ptr<const HeadProfile> head_profile(const LanguageModel& model);

/// Throws Error(mismatch) unless the numbers of the profile, which `path` holds, are of this model.
void check_profile(const HeadProfile& profile, const LanguageModel& model,
                   const std::filesystem::path& path);

}  // namespace mneme
