// Logging: lines for the person at the terminal, on stderr; results go to stdout and never through
// here.
#pragma once

#include "mneme/core/error.h"

#include <fmt/core.h>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme::log {

/// How much a line matters, from the least to the most; `off` is above them all.
enum class Level { trace, debug, info, warn, error, off };

/// The names that `--log-level` takes, from the quietest: off, error, warn, info, debug, trace.
[[nodiscard]] std::vector<std::string> level_names();

/// The level of that name; an Errc::usage error that lists the names if there is none.
[[nodiscard]] Result<Level> parse_level(std::string_view name);

/// Lines below `level` are dropped from now on; starts as Level::warn. Any thread may call it.
void set_level(Level level);
[[nodiscard]] Level level();

/// Whether a line of this level would be written: ask before work that only a message needs.
[[nodiscard]] bool enabled(Level level);

/// Writes one line to stderr, if its level is enabled. Starts with the name of the level where the
/// reader needs it (warnings and worse) and, at debug and trace or where stderr is not a terminal,
/// with the time. A progress bar on the terminal is taken away before and comes back after. Any
/// thread may call it.
void write(Level level, std::string_view message);

/// Formats only what is enabled: log::info("{} tokens in {:.1f} s", tokens, seconds).
template <class... Args>
void trace(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::trace)) write(Level::trace, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::debug)) write(Level::debug, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::info)) write(Level::info, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void warn(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::warn)) write(Level::warn, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::error)) write(Level::error, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace mneme::log
