// Peer: another engine in a process of its own, asked in turns with ours so that both meet the same machine.
#pragma once

#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::bench {

/// A Python program of bench/peers/, in a process group of its own: an interrupt from the terminal is for us to handle. It
/// prints a line when it is ready, then answers every line with one: a number, or `error` and why.
class Peer {
 public:
  /// Starts `program` (a file name in bench/peers/) with `python` and waits until it is ready. Throws Error(not_found)
  /// without the interpreter, Error(unsupported) with the program's own reason, such as a package that is missing.
  /// `between` is called again and again while an answer is awaited, and throws to stop there.
  Peer(
      const std::filesystem::path& python, std::string_view program,
      const std::vector<std::string>& arguments, std::function<void()> between = [] {});
  /// Ends it: at once if it still owes an answer.
  ~Peer();
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  /// Sends a line and gives the number that comes back. Throws Error(io) if the program ends or says `error`.
  double ask(const std::string& line);

  [[nodiscard]] int process() const { return process_; }

  /// The interpreter of the checkout's virtual environment.
  [[nodiscard]] static std::filesystem::path default_python();

 private:
  std::string answer();
  void close();

  std::string name_;
  std::function<void()> between_;
  int process_ = -1;
  bool owes_ = true;  // an answer, or that it is ready
  int to_ = -1;
  std::FILE* from_ = nullptr;
};

}  // namespace mneme::bench
