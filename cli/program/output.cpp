#include "cli/program/output.h"

#include "mneme/core/error.h"
#include "mneme/text/unicode.h"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

namespace mneme::cli {
namespace {

[[noreturn]] void refuse() {
  const auto why = errno;
  if (why == EPIPE) throw OutputClosed();
  throw Error(Errc::io, fmt::format("standard output cannot be written: {}", std::strerror(why)));
}

bool styled() {
  static const bool yes = [] {
    const auto* no_color = std::getenv("NO_COLOR");
    const auto* terminal = std::getenv("TERM");
    return output_is_terminal() && !(no_color && *no_color) && terminal &&
           std::string_view(terminal) != "dumb";
  }();
  return yes;
}

// Characters that steer a terminal or turn the direction of what follows, so that a line would show what it does not say.
bool steers(char32_t c) {
  return c < 0x20 || (c >= 0x7F && c < 0xA0) || (c >= 0x202A && c <= 0x202E) ||
         (c >= 0x2066 && c <= 0x2069) || c == 0x200E || c == 0x200F;
}

}  // namespace

void write(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) refuse();
}

void flush() {
  if (std::fflush(stdout) != 0) refuse();
}

void print_json(const Json& value) {
  write(value.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  flush();
}

bool output_is_terminal() { return ::isatty(STDOUT_FILENO) == 1; }
bool input_is_terminal() { return ::isatty(STDIN_FILENO) == 1; }

std::string bold(std::string_view text) {
  return styled() ? fmt::format("\x1b[1m{}\x1b[0m", text) : std::string(text);
}
std::string faint(std::string_view text) {
  return styled() ? fmt::format("\x1b[2m{}\x1b[0m", text) : std::string(text);
}

std::string printable(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const auto step = text::next_code_point(text, at);
    if (!step.valid) {
      text::append_utf8(text::kReplacementCharacter, out);
    } else if (step.code_point == '\n' || step.code_point == '\t' || !steers(step.code_point)) {
      out += text.substr(at, step.bytes);
    }
    at += step.bytes;
  }
  return out;
}

std::string one_line(std::string_view text) {
  std::string out;
  bool space = false;
  for (const char c : printable(text)) {
    if (c == ' ' || c == '\n' || c == '\t') {
      space = !out.empty();
      continue;
    }
    if (space) out.push_back(' ');
    space = false;
    out.push_back(c);
  }
  return out;
}

std::string with_separators(std::int64_t number) {
  auto digits = std::to_string(number);
  const std::size_t first = number < 0 ? 1 : 0;
  for (auto at = digits.size(); at > first + 3;) {
    at -= 3;
    digits.insert(at, ",");
  }
  return digits;
}

std::string as_size(std::int64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  auto value = static_cast<double>(bytes);
  const char* unit = "";
  for (const char* next : {"KiB", "MiB", "GiB", "TiB"}) {
    if (value < 1024) break;
    value /= 1024;
    unit = next;
  }
  return value == std::floor(value) ? fmt::format("{:.0f} {}", value, unit)
                                    : fmt::format("{:.1f} {}", value, unit);
}

std::string as_duration(double seconds) {
  if (seconds < 1) return fmt::format("{:.2f} s", seconds);
  if (seconds < 120) return fmt::format("{:.1f} s", seconds);
  const auto whole = std::llround(seconds);
  if (whole < 7200) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole / 60 % 60);
}

std::string counted(std::int64_t number, std::string_view singular, std::string_view plural) {
  if (number == 1) return fmt::format("1 {}", singular);
  return plural.empty() ? fmt::format("{} {}s", with_separators(number), singular)
                        : fmt::format("{} {}", with_separators(number), plural);
}

}  // namespace mneme::cli
