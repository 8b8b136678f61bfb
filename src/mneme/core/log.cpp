#include "mneme/core/log.h"

#include "mneme/core/progress.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <spdlog/logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/ansicolor_sink.h>
#include <unistd.h>

namespace mneme::log {
namespace {

struct Name {
  Level level;
  const char* name;
  const char* prefix;  // what the reader sees before the message
};
constexpr std::array<Name, 6> kNames{{{Level::off, "off", ""},
                                      {Level::error, "error", "error: "},
                                      {Level::warn, "warn", "warning: "},
                                      {Level::info, "info", ""},
                                      {Level::debug, "debug", "debug: "},
                                      {Level::trace, "trace", "trace: "}}};

std::atomic<Level> threshold{Level::warn};

spdlog::level::level_enum of_spdlog(Level level) {
  switch (level) {
    case Level::trace:
      return spdlog::level::trace;
    case Level::debug:
      return spdlog::level::debug;
    case Level::info:
      return spdlog::level::info;
    case Level::warn:
      return spdlog::level::warn;
    case Level::error:
      return spdlog::level::err;
    case Level::off:
      break;
  }
  return spdlog::level::off;
}

class Prefix final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& out) override {
    for (const auto& n : kNames) {
      if (of_spdlog(n.level) != message.level) continue;
      const std::string_view prefix = n.prefix;
      out.append(prefix.data(), prefix.data() + prefix.size());
    }
  }
  [[nodiscard]] std::unique_ptr<spdlog::custom_flag_formatter> clone() const override {
    return std::make_unique<Prefix>();
  }
};

// Never destroyed, so that destructors of static objects may still log.
spdlog::logger& logger() {
  static spdlog::logger& instance = *[] {
    const char* no_color = std::getenv("NO_COLOR");
    auto sink = std::make_shared<spdlog::sinks::ansicolor_stderr_sink_mt>(
        no_color && *no_color ? spdlog::color_mode::never : spdlog::color_mode::automatic);
    auto* made = new spdlog::logger("mneme", std::move(sink));
    made->set_level(spdlog::level::trace);  // the threshold above decides
    made->flush_on(spdlog::level::trace);
    return made;
  }();
  return instance;
}

void set_pattern() {
  // The time is for logs that are read later, or read closely; a person at the terminal knows what
  // time it is.
  const auto level = threshold.load();
  const bool timed = level <= Level::debug || (level == Level::info && !isatty(STDERR_FILENO));
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<Prefix>('*').set_pattern(timed ? "[%Y-%m-%d %H:%M:%S.%e] %^%*%$%v"
                                                     : "%^%*%$%v");
  logger().set_formatter(std::move(formatter));
}

}  // namespace

std::vector<std::string> level_names() {
  std::vector<std::string> names;
  for (const auto& n : kNames) names.emplace_back(n.name);
  return names;
}

Result<Level> parse_level(std::string_view name) {
  std::string known;
  for (const auto& n : kNames) {
    if (name == n.name) return n.level;
    known += known.empty() ? n.name : std::string(", ") + n.name;
  }
  return Error(Errc::usage, fmt::format("no log level '{}': use one of {}", name, known));
}

void set_level(Level level) {
  threshold = level;
  set_pattern();
}

Level level() { return threshold; }

bool enabled(Level level) { return level != Level::off && level >= threshold.load(); }

void write(Level level, std::string_view message) {
  if (!enabled(level)) return;
  static const bool patterned = (set_pattern(), true);
  (void)patterned;
  const HiddenProgress hidden;
  logger().log(of_spdlog(level), spdlog::string_view_t(message.data(), message.size()));
}

}  // namespace mneme::log
