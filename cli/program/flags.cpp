#include "cli/program/flags.h"

#include "mneme/core/error.h"

#include "cli/program/output.h"
#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <fmt/format.h>
#include <limits>
#include <nlohmann/json.hpp>

namespace mneme::cli {
namespace {

template <class T>
T number(const std::string& text, std::string_view wanted) {
  T value{};
  const auto* end = text.data() + text.size();
  const auto [stopped, failed] = std::from_chars(text.data(), end, value);
  if (failed == std::errc::result_out_of_range)
    throw Error(Errc::usage, fmt::format("{} is too large", text));
  if (failed != std::errc() || stopped != end)
    throw Error(Errc::usage, fmt::format("'{}' is not {}", text, wanted));
  return value;
}

bool truth(const std::string& text) {
  for (const auto* word : {"true", "1", "yes", "on"}) {
    if (text == word) return true;
  }
  for (const auto* word : {"false", "0", "no", "off"}) {
    if (text == word) return false;
  }
  throw Error(Errc::usage, fmt::format("'{}' is neither true nor false", text));
}

template <class T>
void hold(const std::optional<Check>& check, T& field, const std::string& text) {
  if (check && !check->holds(Field(&field)))
    throw Error(Errc::usage, fmt::format("{} is not {}", text, check->text));
}

// A JSON string is a TOML string.
std::string toml_string(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string floating(double value) {
  auto text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";  // TOML tells 1.0 from 1
  return text;
}

// CLI11 only tells flags from values: values are taken by Setting::assign, wherever they come from.
CLI::Option* add_value(CLI::App& app, std::string_view names) {
  const CLI::callback_t keep = [](const CLI::results_t&) { return true; };
  return app.add_option(std::string(names), keep)
      ->type_name("value")
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

}  // namespace

std::int64_t parse_bytes(std::string_view text) {
  const auto refuse = [&] {
    return Error(
        Errc::usage,
        fmt::format("'{}' is not a size: write 64MiB, 1GiB, 500MB or a number of bytes", text));
  };
  double value = 0;
  const auto* end = text.data() + text.size();
  const auto [stopped, failed] = std::from_chars(text.data(), end, value, std::chars_format::fixed);
  if (failed != std::errc()) throw refuse();
  std::string unit;
  for (const char c : std::string_view(stopped, static_cast<std::size_t>(end - stopped))) {
    if (c != ' ') unit.push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c);
  }
  double scale = 0;
  if (unit.empty() || unit == "b") {
    scale = 1;
  } else {
    const auto power = std::string_view("kmgt").find(unit[0]);
    if (power == std::string_view::npos) throw refuse();
    const auto rest = unit.substr(1);
    if (rest != "ib" && rest != "b" && !rest.empty()) throw refuse();
    scale = std::pow(rest == "b" ? 1000.0 : 1024.0, static_cast<double>(power + 1));
  }
  const auto bytes = value * scale;
  if (!(bytes >= 0) || bytes > 9e18) throw refuse();
  return std::llround(bytes);
}

Setting& Flags::add(std::string_view names, std::string_view placeholder, std::string_view help) {
  Setting out;
  out.help = help;
  std::string for_help;
  std::string_view rest = names;
  while (!rest.empty()) {
    const auto comma = rest.find(',');
    auto one = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
    const bool negated = one.starts_with('!');
    if (negated) one.remove_prefix(1);
    for_help += (for_help.empty() ? "" : ", ") + std::string(one);
    if (one.starts_with("--") && !negated) out.name = one.substr(2);
  }
  out.spelling = for_help + (placeholder.empty() ? "" : " " + std::string(placeholder));
  settings_.push_back(std::move(out));
  return settings_.back();
}

void Flags::operator()(std::string_view names, bool& field, std::string_view help) {
  auto& setting = add(names, "", help);
  setting.option = app_.add_flag(std::string(names));
  setting.assign = [&field](const auto& texts) { field = truth(texts.back()); };
  setting.as_toml = [&field] { return std::string(field ? "true" : "false"); };
}

void Flags::operator()(std::string_view names, std::int64_t& field, std::string_view placeholder,
                       std::optional<Check> check, std::string_view help) {
  auto& setting = add(names, placeholder, help);
  setting.option = add_value(app_, names);
  setting.assign = [&field, check](const auto& texts) {
    field = number<std::int64_t>(texts.back(), "a whole number");
    hold(check, field, texts.back());
  };
  setting.as_toml = [&field] { return std::to_string(field); };
}

void Flags::operator()(std::string_view names, std::uint64_t& field, std::string_view placeholder,
                       std::string_view help) {
  auto& setting = add(names, placeholder, help);
  setting.option = add_value(app_, names);
  setting.assign = [&field](const auto& texts) {
    field = number<std::uint64_t>(texts.back(), "a whole number from 0");
  };
  setting.as_toml = [&field] { return std::to_string(field); };
}

void Flags::operator()(std::string_view names, double& field, std::string_view placeholder,
                       std::optional<Check> check, std::string_view help) {
  auto& setting = add(names, placeholder, help);
  setting.option = add_value(app_, names);
  setting.assign = [&field, check](const auto& texts) {
    field = number<double>(texts.back(), "a number");
    if (!std::isfinite(field))
      throw Error(Errc::usage, fmt::format("{} is not a finite number", texts.back()));
    hold(check, field, texts.back());
  };
  setting.as_toml = [&field] { return floating(field); };
}

void Flags::operator()(std::string_view names, std::string& field, std::string_view placeholder,
                       std::string_view help) {
  auto& setting = add(names, placeholder, help);
  setting.option = add_value(app_, names);
  setting.assign = [&field](const auto& texts) { field = texts.back(); };
  setting.as_toml = [&field] { return field.empty() ? "" : toml_string(field); };
}

void Flags::operator()(std::string_view names, std::optional<std::string>& field,
                       std::string_view placeholder, std::string_view help) {
  auto& setting = add(names, placeholder, help);
  setting.option = add_value(app_, names);
  setting.assign = [&field](const auto& texts) { field = texts.back(); };
  setting.as_toml = [&field] { return field ? toml_string(*field) : ""; };
}

void Flags::operator()(std::string_view names, std::string& field,
                       const std::vector<std::string>& words, std::string_view help) {
  auto& setting = add(names, fmt::format("{}", fmt::join(words, "|")), help);
  setting.option = add_value(app_, names);
  setting.assign = [&field, check = one_of(words)](const auto& texts) {
    auto text = texts.back();
    if (!check.holds(Field(&text)))
      throw Error(Errc::usage, fmt::format("'{}' is not {}", text, check.text));
    field = text;
  };
  setting.as_toml = [&field] { return field.empty() ? "" : toml_string(field); };
}

void Flags::operator()(std::string_view names, std::vector<std::string>& field,
                       std::string_view placeholder, std::string_view help) {
  auto& setting = add(names, placeholder, help);
  setting.option = add_value(app_, names);
  setting.assign = [&field](const auto& texts) { field = texts; };
  setting.as_toml = [&field]() -> std::string {
    if (field.empty()) return "";
    std::string out;
    for (const auto& text : field) out += (out.empty() ? "" : ", ") + toml_string(text);
    return "[" + out + "]";
  };
}

void Flags::operator()(std::string_view names, ByteSize& field, std::string_view placeholder,
                       std::int64_t least_bytes, std::string_view help) {
  auto& setting = add(names, placeholder, help);
  setting.option = add_value(app_, names);
  setting.assign = [&field, least_bytes](const auto& texts) {
    const auto bytes = parse_bytes(texts.back());
    if (bytes < least_bytes)
      throw Error(Errc::usage, fmt::format("{} is too small: give at least {}", texts.back(),
                                           as_size(least_bytes)));
    field.bytes = bytes;
  };
  setting.as_toml = [&field] { return field.bytes ? std::to_string(*field.bytes) : ""; };
}

std::vector<std::string> Flags::names() const {
  std::vector<std::string> out;
  for (const auto& setting : settings_) out.push_back(setting.name);
  return out;
}

std::vector<std::string> Flags::spellings() const {
  std::vector<std::string> out;
  for (const auto& setting : settings_) {
    for (const auto& name : setting.option->get_lnames()) out.push_back("--" + name);
    for (const auto& name : setting.option->get_snames()) out.push_back("-" + name);
  }
  return out;
}

Setting* Flags::find(std::string_view name) {
  const auto found = std::find_if(settings_.begin(), settings_.end(),
                                  [&](const Setting& s) { return s.name == name; });
  return found == settings_.end() ? nullptr : &*found;
}

}  // namespace mneme::cli
