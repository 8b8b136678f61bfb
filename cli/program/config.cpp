#include "cli/program/config.h"

#include "mneme/core/error.h"
#include "mneme/core/nearest.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fmt/format.h>
#include <fstream>
#include <iterator>
#include <toml++/toml.h>

namespace mneme::cli {
namespace {

namespace fs = std::filesystem;

bool contains(const std::vector<std::string>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::optional<std::string> text_of(const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* integer = node.as_integer()) return std::to_string(integer->get());
  if (const auto* number = node.as_floating_point()) return fmt::format("{}", number->get());
  if (const auto* truth = node.as_boolean()) return truth->get() ? "true" : "false";
  return std::nullopt;
}

}  // namespace

ConfigFile::ConfigFile(const fs::path& path, const KnownSettings& known) : path_(path) {
  std::error_code error;
  if (!fs::exists(path, error))
    throw Error(Errc::not_found, path.string() + ": there is no such config file");
  if (fs::is_directory(path, error))
    throw Error(Errc::io, path.string() + ": is a folder, not a config file");
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  if (!in.is_open() || in.bad())
    throw Error(Errc::io, path.string() + ": the config file cannot be read");
  toml::table table;
  try {
    table = toml::parse(text, path.string());
  } catch (const toml::parse_error& failure) {
    throw Error(Errc::usage, fmt::format("{}:{}: {}", path.string(), failure.source().begin.line,
                                         failure.description()));
  }
  const auto read = [&](const toml::table& from, const std::string& verb,
                        const std::vector<std::string>& names) {
    for (const auto& [key, node] : from) {
      std::string name(key.str());
      std::replace(name.begin(), name.end(), '_', '-');
      const auto where = fmt::format("{}:{}", path.string(), node.source().begin.line);
      if (verb.empty() && node.is_table()) continue;
      if (!contains(names, name)) {
        auto near = names;
        if (verb.empty()) {
          for (const auto& [other, ignored] : known.by_verb) near.push_back(other);
        }
        throw Error(Errc::usage,
                    fmt::format("{}: unknown key '{}'{}{}", where, key.str(),
                                verb.empty() ? "" : " for " + verb, did_you_mean(name, near)));
      }
      Entry entry{verb, name, {}};
      const auto add = [&](const toml::node& value) {
        auto as_text = text_of(value);
        if (!as_text)
          throw Error(
              Errc::usage,
              fmt::format("{}: '{}' must be text, a number, true, false, or a list of texts", where,
                          key.str()));
        entry.values.push_back(std::move(*as_text));
      };
      if (const auto* array = node.as_array()) {
        for (const auto& element : *array) add(element);
        if (entry.values.empty()) continue;  // an empty list says nothing
      } else {
        add(node);
      }
      entries_.push_back(std::move(entry));
    }
  };
  read(table, "", known.anywhere);
  for (const auto& [key, node] : table) {
    if (!node.is_table()) continue;
    const std::string verb(key.str());
    const auto found = std::find_if(known.by_verb.begin(), known.by_verb.end(),
                                    [&](const auto& v) { return v.first == verb; });
    if (found == known.by_verb.end()) {
      std::vector<std::string> names;
      for (const auto& [name, ignored] : known.by_verb) names.push_back(name);
      throw Error(Errc::usage,
                  fmt::format("{}:{}: unknown table [{}]{}", path.string(),
                              node.source().begin.line, verb, did_you_mean(verb, names)));
    }
    read(*node.as_table(), verb, found->second);
  }
}

std::optional<std::vector<std::string>> ConfigFile::find(std::string_view verb,
                                                         std::string_view name) const {
  const Entry* best = nullptr;
  for (const auto& entry : entries_) {
    if (entry.name == name && (entry.verb == verb || (entry.verb.empty() && !best))) best = &entry;
  }
  if (!best) return std::nullopt;
  return best->values;
}

std::optional<fs::path> default_config_file() {
  fs::path folder;
  if (const auto* config = std::getenv("XDG_CONFIG_HOME"); config && *config) {
    folder = config;
  } else if (const auto* home = std::getenv("HOME"); home && *home) {
    folder = fs::path(home) / ".config";
  } else {
    return std::nullopt;
  }
  auto path = folder / "mneme" / "config.toml";
  std::error_code error;
  if (!fs::exists(path, error)) return std::nullopt;
  return path;
}

std::string environment_name(std::string_view setting) {
  std::string out = "MNEME_";
  for (const char c : setting)
    out.push_back(c == '-' ? '_' : c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c);
  return out;
}

void settle(Flags& flags, std::string_view verb, const ConfigFile* file) {
  for (auto& setting : flags.settings()) {
    std::vector<std::string> values;
    std::string where;
    const auto variable = environment_name(setting.name);
    if (setting.option->count() > 0) {
      values = setting.option->results();
      where = "--" + setting.name;
      setting.origin = kCommandLine;
    } else if (const auto* value = setting.in_environment ? std::getenv(variable.c_str()) : nullptr;
               value && *value) {
      values = {value};
      where = variable;
      setting.origin = variable;
    } else if (auto found =
                   file && setting.in_config ? file->find(verb, setting.name) : std::nullopt) {
      values = std::move(*found);
      where = fmt::format("{}: {}", file->path().string(), setting.name);
      setting.origin = file->path().string();
    } else {
      continue;
    }
    try {
      setting.assign(values);
    } catch (const Error& error) {
      throw Error(Errc::usage, fmt::format("{}: {}", where, error.what()));
    }
  }
}

std::string print_config(const Flags& flags) {
  std::string out;
  for (const auto& setting : flags.settings()) {
    if (!setting.in_config) continue;
    const auto value = setting.as_toml();
    const auto line = value.empty() ? fmt::format("# {} is not set", setting.name)
                                    : fmt::format("{} = {}", setting.name, value);
    out += value.empty() ? line + "\n" : fmt::format("{:<40} # {}\n", line, setting.origin);
  }
  return out;
}

}  // namespace mneme::cli
