#include "mneme/models/profile.h"

#include "mneme/core/error.h"
#include "mneme/models/language_model.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fmt/format.h>
#include <optional>

namespace mneme {
namespace {

namespace fs = std::filesystem;

std::optional<fs::path> profile_folder() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return fs::path(value == nullptr ? "" : value);
  };
  if (auto folder = variable("MNEME_PROFILES"); !folder.empty()) return folder;
  if (const auto cache = variable("XDG_CACHE_HOME"); cache.is_absolute())
    return cache / "mneme" / "profiles";
  if (const auto home = variable("HOME"); home.is_absolute())
    return home / ".cache" / "mneme" / "profiles";
  return std::nullopt;
}

fs::path file_in(const fs::path& folder, const std::string& model_digest) {
  // A digest becomes a file's name: nothing in it may lead elsewhere.
  if (model_digest.empty() || !std::all_of(model_digest.begin(), model_digest.end(), [](char c) {
        return std::isalnum(static_cast<unsigned char>(c)) != 0;
      })) {
    throw Error(Errc::invalid, fmt::format("'{}' is no digest of a model", model_digest));
  }
  return folder / (model_digest + ".safetensors");
}

}  // namespace

fs::path profile_path(const std::string& model_digest) {
  const auto folder = profile_folder();
  if (!folder) {
    throw Error(Errc::not_found,
                "there is no place for head profiles: set MNEME_PROFILES to a folder (neither "
                "XDG_CACHE_HOME nor HOME is set)");
  }
  return file_in(*folder, model_digest);
}

void check_profile(const HeadProfile& profile, const LanguageModel& model, const fs::path& path) {
  if (profile.model_digest != model.digest) {
    throw Error(Errc::mismatch,
                fmt::format("{}: was measured on another model than {}: measure again with `mneme "
                            "calibrate` into another file, or remove it",
                            path.string(), model.name));
  }
  const auto layers = model.model->shape().layers;
  for (const auto& [name, numbers] : profile.numbers) {
    if (numbers.size(0) == layers) continue;
    throw Error(Errc::mismatch,
                fmt::format("{}: '{}' is of {} layers and {} has {}: remove it and measure again "
                            "with `mneme calibrate`",
                            path.string(), name, numbers.size(0), model.name, layers));
  }
}

std::shared_ptr<const HeadProfile> head_profile(const LanguageModel& model) {
  const auto folder = profile_folder();
  if (!folder) return nullptr;
  const auto path = file_in(*folder, model.digest);
  std::error_code failed;
  if (!fs::exists(path, failed)) return nullptr;
  auto out = std::make_shared<HeadProfile>(HeadProfile::load(path));
  check_profile(*out, model, path);
  return out;
}

}  // namespace mneme
