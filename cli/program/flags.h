// Flags: a verb's settings, declared once. Command line, environment, config file, help and --print-config follow from it.
#pragma once

#include "mneme/core/describe.h"

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace mneme::cli {

/// A number of bytes that a person writes as "64MiB".
struct ByteSize {
  std::optional<std::int64_t> bytes;
};

/// Reads a size: a number and, perhaps, KiB, MiB, GiB, TiB (powers of 1024), kB, MB, GB, TB (powers of 1000) or B; case
/// does not matter. Throws Error(usage).
std::int64_t parse_bytes(std::string_view text);

/// One declared setting.
struct Setting {
  std::string
      name;  ///< its long flag without dashes: the key in config files, MNEME_<NAME> in the environment
  std::string spelling;            ///< for help: "-o, --output FILE"
  std::string help;                ///< one line
  std::string origin = "default";  ///< where its value comes from
  bool in_config = true;           ///< whether a config file may hold it
  bool in_environment = true;      ///< whether MNEME_<NAME> gives it
  CLI::Option* option = nullptr;
  std::function<void(const std::vector<std::string>&)>
      assign;                            ///< takes values as text; throws Error(usage)
  std::function<std::string()> as_toml;  ///< the value now; "" for one that is not set
};

/// Where the values of settings come from that are not at their defaults: Setting::origin by name.
using Origins = std::map<std::string, std::string, std::less<>>;
/// The origin of what was typed.
inline constexpr std::string_view kCommandLine = "command line";

/// Names of flags are written for CLI11: "-o,--output"; the last long one is the setting's name. "--eager,!--lazy" is one
/// setting with a flag for each of its values. Later values on the command line win, except in lists, which take all.
class Flags {
 public:
  explicit Flags(CLI::App& app) : app_(app) {}

  void operator()(std::string_view names, bool& field, std::string_view help);
  void operator()(std::string_view names, std::int64_t& field, std::string_view placeholder,
                  std::optional<Check> check, std::string_view help);
  void operator()(std::string_view names, std::uint64_t& field, std::string_view placeholder,
                  std::string_view help);
  void operator()(std::string_view names, double& field, std::string_view placeholder,
                  std::optional<Check> check, std::string_view help);
  void operator()(std::string_view names, std::string& field, std::string_view placeholder,
                  std::string_view help);
  /// Of which it is known whether it was given: "" is a text too.
  void operator()(std::string_view names, std::optional<std::string>& field,
                  std::string_view placeholder, std::string_view help);
  /// A word out of a few.
  void operator()(std::string_view names, std::string& field, const std::vector<std::string>& words,
                  std::string_view help);
  void operator()(std::string_view names, std::vector<std::string>& field,
                  std::string_view placeholder, std::string_view help);
  void operator()(std::string_view names, ByteSize& field, std::string_view placeholder,
                  std::int64_t least_bytes, std::string_view help);

  [[nodiscard]] std::vector<Setting>& settings() { return settings_; }
  [[nodiscard]] const std::vector<Setting>& settings() const { return settings_; }
  /// The settings' names, and with dashes every flag: for "did you mean".
  [[nodiscard]] std::vector<std::string> names() const;
  [[nodiscard]] std::vector<std::string> spellings() const;
  [[nodiscard]] Setting* find(std::string_view name);

 private:
  Setting& add(std::string_view names, std::string_view placeholder, std::string_view help);
  CLI::App& app_;
  std::vector<Setting> settings_;
};

}  // namespace mneme::cli
