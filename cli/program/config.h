// Where settings come from when no flag gives them: the environment, then a config file.
#pragma once

#include "cli/program/flags.h"
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme::cli {

/// What the config files of one program may hold: settings for every verb at the top, and one table a verb.
struct KnownSettings {
  std::vector<std::string> anywhere;  ///< names of all settings of all verbs
  std::vector<std::pair<std::string, std::vector<std::string>>>
      by_verb;  ///< names of a verb's own settings
};

/// A TOML file whose keys are flags without dashes ("max-tokens = 40"); a table "[ask]" holds what is meant for that verb
/// alone and goes before what stands at the top.
class ConfigFile {
 public:
  /// Reads and checks all of it. Throws Error(not_found), Error(io), and Error(usage) with the line for what is no TOML,
  /// for an unknown key (naming the nearest) and for a value that no flag can have.
  ConfigFile(const std::filesystem::path& path, const KnownSettings& known);

  /// The values of a setting for a verb, if the file has it.
  [[nodiscard]] std::optional<std::vector<std::string>> find(std::string_view verb,
                                                             std::string_view name) const;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  struct Entry {
    std::string verb, name;
    std::vector<std::string> values;
  };
  std::filesystem::path path_;
  std::vector<Entry> entries_;
};

/// ${XDG_CONFIG_HOME:-~/.config}/mneme/config.toml if there is such a file.
std::optional<std::filesystem::path> default_config_file();

/// "MNEME_MAX_TOKENS" for "max-tokens".
std::string environment_name(std::string_view setting);

/// Gives every setting its value: flags over environment over config file over default. What asks for something else than
/// the verb's work (--version) is only given by its flag. `file` may be null. Throws Error(usage) that says where a wrong
/// value stands.
void settle(Flags& flags, std::string_view verb, const ConfigFile* file);

/// The values in force as lines of a config file, each with where it comes from.
std::string print_config(const Flags& flags);

}  // namespace mneme::cli
