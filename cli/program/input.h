// Input: stdin, whole or line by line, ended by Ctrl-C at any moment.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace mneme::cli {

/// stdin to its end, byte for byte. Throws Interrupted, Error(io), and Error(full) above `most_bytes`.
std::string read_input(std::int64_t most_bytes = std::int64_t{1} << 30);

/// A pipe or a device to its end, byte for byte; waiting for somebody to write into it ends with Ctrl-C too. A zero byte
/// ends the reading: no text goes on behind it, and some devices never end. Throws Interrupted, Error(io), and Error(full)
/// above `most_bytes`, which begin with `label`.
std::string read_pipe(const std::string& path, const std::string& label,
                      std::int64_t most_bytes = std::int64_t{1} << 30);

/// The text itself, or stdin without its last line ends where it is "-". Throws Error(invalid), by the name of `what`, for
/// what is not UTF-8.
std::string text_or_input(const std::string& argument, const std::string& what);

/// Throws Error(invalid), by the name of `what`, for a text that is not UTF-8.
void check_utf8(const std::string& text, const std::string& what);

/// Warns, by the name of `what`, of bytes of a text for which the model's vocabulary has no token.
void warn_of_lost_bytes(std::int64_t bytes, const std::string& what);

/// Lines from stdin: with editing and history on a terminal, as they come otherwise.
class LineReader {
 public:
  LineReader();
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  /// The next line without its end, or nothing at the end of the input, on Ctrl-D, and on Ctrl-C (which on a terminal
  /// first empties a line that is not). `prompt` is shown on a terminal only. Throws Error(io), and Error(full) for a line
  /// above 16 MiB.
  std::optional<std::string> next(const std::string& prompt);

 private:
  struct Terminal;
  std::unique_ptr<Terminal> terminal_;
  std::string held_;
  bool ended_ = false;
};

}  // namespace mneme::cli
