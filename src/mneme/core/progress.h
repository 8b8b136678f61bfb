// Progress of long work on stderr: a bar with rate and time left on a terminal, a plain line every
// few seconds elsewhere. Own code, since Debian has no C++ library for this (its progress-bar
// packages are for Go, Python, Haskell and Perl).
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <string>

namespace mneme {

/// One piece of work whose end is known, or not. Where several are alive the newest is drawn; a
/// finished one leaves one line that says how much was done, how long it took and how fast.
class Progress {
 public:
  /// Where and how to draw; for_stderr() is what everybody but tests wants.
  struct Output {
    std::ostream* stream = nullptr;
    bool terminal = false;            ///< redraw one line; otherwise append lines
    bool color = false;               ///< ANSI colors in the bar
    std::function<int()> columns;     ///< width of the terminal now; asked at every drawing
    std::function<double()> seconds;  ///< a clock that never goes back

    /// stderr as it is: a terminal or not, its width, NO_COLOR and TERM=dumb honoured.
    [[nodiscard]] static Output for_stderr();
  };

  /// `what` is a phrase that stands before the figures ("reading handbook.txt"), `unit` a plural
  /// ("tokens"; "bytes" are shown as KiB, MiB, ...). A total of 0 or less is unknown: then no bar
  /// and no time left. Starts the clock.
  Progress(std::string what, std::int64_t total, std::string unit);
  Progress(std::string what, std::int64_t total, std::string unit, Output output);

  /// Finishes; where an exception is on its way, the last line says where the work stopped.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `n` more units are done. Any thread may call it; it costs a clock reading unless the line is
  /// due.
  void advance(std::int64_t n);

  /// A word on what is being done now, shown at the end of the line until the next one ("chapter
  /// 3"). Any thread.
  void note(std::string text);

  /// The work is done: leaves the last line. More calls do nothing.
  void finish();

  /// No progress is shown from now on, anywhere (`--quiet`).
  static void set_quiet(bool quiet);
  [[nodiscard]] static bool quiet();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// While it lives no bar is on the terminal and none is drawn, so that other lines can be written
/// to it; the bar comes back afterwards. May be nested on one thread; another thread waits for it.
class HiddenProgress {
 public:
  HiddenProgress();
  ~HiddenProgress();
  HiddenProgress(const HiddenProgress&) = delete;
  HiddenProgress& operator=(const HiddenProgress&) = delete;
};

}  // namespace mneme
