// Where models are: the two default models inside their Python packages, and whatever path a user names.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace mneme {

struct LocatedModel {
  std::string name;  ///< "smollm2", or the path's own last part
  std::filesystem::path path;
  std::string kind;  ///< "language model" or "embedder"
};

/// Finds a known name or an existing path; throws Error(not_found) with the known names and how to install them.
/// Packages are looked for in the folders of MNEME_MODELS (separated by ':'), the virtual environment of the set-up, and
/// the site-packages of VIRTUAL_ENV.
LocatedModel locate_model(const std::string& name_or_path);

/// Every model that is found under its name.
std::vector<LocatedModel> known_models();

}  // namespace mneme
