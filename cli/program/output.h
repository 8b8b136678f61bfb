// Output: results on stdout, and how things are written for people.
#pragma once

#include <cstdint>
#include <fmt/core.h>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace mneme::cli {

/// Objects whose fields stay in the order in which they were written.
using Json = nlohmann::ordered_json;

/// Whoever read our output is gone.
struct OutputClosed : std::exception {};

/// Writes to stdout. Throws Error(io) if the system refuses (a full disk), OutputClosed if nobody reads any more.
void write(std::string_view text);
void flush();

template <class... Args>
void say(fmt::format_string<Args...> format, Args&&... args) {
  write(fmt::format(format, std::forward<Args>(args)...));
}

/// Writes one value on one line; what is not UTF-8 in it (file names) becomes U+FFFD.
void print_json(const Json& value);

/// Whether stdout, stderr or stdin is a terminal.
bool output_is_terminal();
bool input_is_terminal();

/// The text in bold or faint, where stdout is a terminal that shows it and NO_COLOR is not set.
std::string bold(std::string_view text);
std::string faint(std::string_view text);

/// Text from files and models as one line of a terminal: white space becomes single spaces, and what would steer the
/// terminal (control characters, changes of direction) is left out.
std::string one_line(std::string_view text);
/// The same, but lines stay lines.
std::string printable(std::string_view text);

std::string with_separators(std::int64_t number);  ///< 109,873
std::string as_size(std::int64_t bytes);           ///< 12.3 MiB
std::string as_duration(double seconds);           ///< 0.45 s, 12.3 s, 3 min 20 s
/// "1 source", "4 sources"
std::string counted(std::int64_t number, std::string_view singular, std::string_view plural = "");

}  // namespace mneme::cli
