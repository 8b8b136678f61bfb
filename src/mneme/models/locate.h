// Where models are: the two default models inside their Python packages, and whatever path a user names.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
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

/// Whether two names or paths mean the same files; false where one of them is not there.
bool same_model(const std::string& name_or_path, const std::string& other);

/// Every model that is found under its name.
std::vector<LocatedModel> known_models();

/// What the program brings along: the files with this ending (".toml") in the nearest folder of this name above the
/// program, in its checkout or, installed, under share/mneme; sorted.
std::vector<std::filesystem::path> files_beside_program(std::string_view folder,
                                                        std::string_view ending);

/// The name that stands for a model's weights as they are.
inline constexpr const char* kNoAdapter = "none";

/// Finds an adapter by its known name ("smollm2-reader", a file of the folder `adapters` beside the program or in its
/// checkout) or path; throws Error(not_found) with the known names.
std::filesystem::path locate_adapter(const std::string& name_or_path);

/// The name of the adapter that a model of a known name, also if given by its path, answers with unless the user says
/// otherwise; kNoAdapter where there is none.
std::string default_adapter(const std::string& model);

/// Every adapter that is found under its name.
std::vector<std::string> known_adapters();

}  // namespace mneme
