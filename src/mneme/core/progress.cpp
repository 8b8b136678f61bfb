#include "mneme/core/progress.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <fmt/core.h>
#include <iostream>
#include <mutex>
#include <string_view>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace mneme {
namespace {

constexpr double kRedraw_s = 0.1, kLine_s = 5.0;
constexpr double kRateMemory_s = 5.0;  // the rate shown forgets the past with this time constant
constexpr int kLongestBar = 30, kShortestBar = 8;

std::atomic<bool> is_quiet{false};

/// "1.23", "45.6", "789": three digits that matter.
std::string three_digits(double x) {
  return x < 9.995   ? fmt::format("{:.2f}", x)
         : x < 99.95 ? fmt::format("{:.1f}", x)
                     : fmt::format("{:.0f}", x);
}

/// "950", "12.3k", "4.56M"; bytes as "1.50 MiB".
std::string amount(double n, bool bytes) {
  static constexpr std::array<const char*, 5> kDecimal{"", "k", "M", "G", "T"},
      kBinary{" B", " KiB", " MiB", " GiB", " TiB"};
  const double step = bytes ? 1024 : 1000;
  std::size_t i = 0;
  for (; n >= step * 0.9995 && i + 1 < kDecimal.size(); ++i) n /= step;
  const bool whole = i == 0 && n == std::floor(n);
  return (whole ? fmt::format("{:.0f}", n) : three_digits(n)) + (bytes ? kBinary : kDecimal)[i];
}

/// "0:07", "12:34", "3:05:09".
std::string clock_time(double s) {
  const auto t = static_cast<std::int64_t>(std::min(std::max(s, 0.0), 3.6e8) + 0.5);
  return t < 3600 ? fmt::format("{}:{:02}", t / 60, t % 60)
                  : fmt::format("{}:{:02}:{:02}", t / 3600, t / 60 % 60, t % 60);
}

/// "0.84 s", "58 s", "12:34".
std::string duration(double s) {
  return s < 9.95   ? fmt::format("{:.1f} s", s)
         : s < 99.5 ? fmt::format("{:.0f} s", s)
                    : clock_time(s);
}

bool continues_character(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

/// Columns of UTF-8 text, every code point counted as one.
int columns_of(std::string_view text) {
  return static_cast<int>(
      std::count_if(text.begin(), text.end(), [](char c) { return !continues_character(c); }));
}

/// The first `columns` columns of the text, no character cut in half.
std::string_view clipped(std::string_view text, int columns) {
  std::size_t end = 0;
  for (; end < text.size(); ++end) {
    if (!continues_character(text[end]) && columns-- <= 0) break;
  }
  return text.substr(0, end);
}

/// Line breaks and other control characters would leave the line that is redrawn.
std::string printable(std::string text) {
  std::replace_if(
      text.begin(), text.end(),
      [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }, ' ');
  return text;
}

}  // namespace

struct Progress::Impl {
  std::string what, unit, note;
  std::int64_t total = 0;
  Output out;
  int exceptions =
      0;  // on their way when it was made; one more at its end means that the work was cut short
  double started = 0, sampled = 0, rate = 0;
  std::int64_t sampled_done = 0;
  bool drawn = false, finished = false;
  std::atomic<std::int64_t> done{0};
  std::atomic<double> due{0};

  [[nodiscard]] bool bytes() const { return unit == "bytes"; }
  [[nodiscard]] std::string count() const {
    const auto n = static_cast<double>(done.load());
    if (total <= 0) return amount(n, bytes()) + (bytes() ? "" : " " + unit);
    return amount(n, bytes()) + "/" + amount(static_cast<double>(total), bytes()) +
           (bytes() ? "" : " " + unit);
  }
  [[nodiscard]] std::string speed(double per_s) const {
    return amount(per_s, bytes()) + (bytes() ? "/s" : " " + unit + "/s");
  }
  [[nodiscard]] double share() const {
    return std::clamp(static_cast<double>(done.load()) / static_cast<double>(total), 0.0, 1.0);
  }
  [[nodiscard]] std::string left() const {
    const auto remaining = static_cast<double>(total - done.load());
    return total > 0 && rate > 0 && remaining >= 0 ? clock_time(remaining / rate) + " left" : "";
  }

  void sample(double now) {
    const double dt = now - sampled;
    const auto n = done.load();
    if (dt <= 0) return;
    const double current = static_cast<double>(n - sampled_done) / dt;
    // The first sample stands alone; later ones weigh as much as they last.
    const double weight = rate > 0 ? 1 - std::exp(-dt / kRateMemory_s) : 1;
    rate += weight * (current - rate);
    sampled = now;
    sampled_done = n;
  }

  /// The figures, then as much of bar, name and note as the width allows.
  [[nodiscard]] std::string line(int columns) const {
    std::string figures = total > 0 ? fmt::format("{:3.0f}%  ", std::floor(share() * 100)) : "";
    figures += count();
    if (rate > 0) figures += "  " + speed(rate);
    if (const auto l = left(); !l.empty()) figures += "  " + l;
    int room = columns - 1 - columns_of(figures);  // the last column makes some terminals wrap
    std::string text;
    if (const int n = std::min(columns_of(what), room - 2); n > 0) {
      text = std::string(clipped(what, n)) + "  ";
      room -= n + 2;
    }
    if (const int n = std::min(room - 4, kLongestBar); total > 0 && n >= kShortestBar) {
      const int filled = static_cast<int>(share() * n);
      text += out.color ? "[\033[32m" : "[";
      text += std::string(filled, '=');
      if (filled < n) text += '>';
      text += out.color ? "\033[0m" : "";
      text += std::string(std::max(0, n - filled - 1), ' ') + "]  ";
      room -= n + 4;
    }
    text += clipped(figures, columns - 1);
    if (!note.empty() && room > 4) text += "  " + std::string(clipped(note, room - 2));
    return text;
  }

  [[nodiscard]] std::string plain_line() const {
    std::string text = what + ": " + count();
    if (total > 0) text += fmt::format(" ({:.0f} %)", std::floor(share() * 100));
    if (rate > 0) text += ", " + speed(rate);
    if (const auto l = left(); !l.empty()) text += ", " + l;
    return note.empty() ? text : text + ", " + note;
  }

  [[nodiscard]] std::string last_line(bool cut_short) const {
    if (cut_short) return what + ": stopped at " + count();
    const auto n = static_cast<double>(done.load());
    const double took = out.seconds() - started;
    std::string text =
        what + ": " + amount(n, bytes()) + (bytes() ? "" : " " + unit) + " in " + duration(took);
    return took > 0 && n > 0 ? text + " (" + speed(n / took) + ")" : text;
  }

  void put(const std::string& text) const { *out.stream << text << std::flush; }
  void erase() {
    if (drawn) put("\r\033[K");
    drawn = false;
  }
  void draw() {
    put("\r" + line(out.columns()) + "\033[K");
    drawn = true;
  }
};

namespace {

/// Guards the terminal and everything in Progress::Impl that is not atomic; recursive since a
/// holder of HiddenProgress may log.
std::recursive_mutex& screen() {
  static auto& mutex = *new std::recursive_mutex;
  return mutex;
}

/// What HiddenProgress needs of the bars that are alive, newest last: take the line away, bring it
/// back.
struct Bar {
  void* owner;
  std::function<void()> erase, draw;
};
std::vector<Bar>& bars() {
  static auto& alive = *new std::vector<Bar>;
  return alive;
}
int hidden = 0;

}  // namespace

Progress::Output Progress::Output::for_stderr() {
  const auto set = [](const char* name) {
    const char* value = std::getenv(name);
    return value && *value;
  };
  const char* term = std::getenv("TERM");
  Output out;
  out.stream = &std::cerr;
  out.terminal = isatty(STDERR_FILENO) && !(term && std::string_view(term) == "dumb");
  out.color = out.terminal && !set("NO_COLOR");
  out.columns = [] {
    winsize size{};
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? int{size.ws_col} : 80;
  };
  out.seconds = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  return out;
}

Progress::Progress(std::string what, std::int64_t total, std::string unit)
    : Progress(std::move(what), total, std::move(unit), Output::for_stderr()) {}

Progress::Progress(std::string what, std::int64_t total, std::string unit, Output output)
    : impl_(std::make_unique<Impl>()) {
  auto& my = *impl_;
  my.what = printable(std::move(what));
  my.unit = std::move(unit);
  my.total = total;
  my.out = std::move(output);
  my.exceptions = std::uncaught_exceptions();
  my.started = my.sampled = my.out.seconds();
  my.due = my.started + (my.out.terminal ? kRedraw_s : kLine_s);
  const std::lock_guard lock(screen());
  if (!bars().empty()) bars().back().erase();
  bars().push_back({this, [&my] { my.erase(); },
                    [&my] {
                      if (my.out.terminal && !quiet()) my.draw();
                    }});
  if (hidden == 0) bars().back().draw();
}

Progress::~Progress() {
  try {
    finish();
  } catch (...) {  // a stream set to throw: the work itself is done
  }
}

void Progress::advance(std::int64_t n) {
  auto& my = *impl_;
  my.done += n;
  const double now = my.out.seconds();
  if (now < my.due.load(std::memory_order_relaxed) || quiet()) return;
  const std::unique_lock lock(screen(), std::try_to_lock);
  // Whoever holds the terminal shows a line soon enough.
  if (!lock || my.finished || hidden > 0 || bars().back().owner != this || now < my.due) return;
  my.due = now + (my.out.terminal ? kRedraw_s : kLine_s);
  my.sample(now);
  if (my.out.terminal) {
    my.draw();
  } else {
    my.put(my.plain_line() + "\n");
  }
}

void Progress::note(std::string text) {
  const std::lock_guard lock(screen());
  impl_->note = printable(std::move(text));
}

void Progress::finish() {
  auto& my = *impl_;
  const std::lock_guard lock(screen());
  if (my.finished) return;
  my.finished = true;
  my.erase();
  auto& alive = bars();
  alive.erase(
      std::remove_if(alive.begin(), alive.end(), [this](const Bar& b) { return b.owner == this; }),
      alive.end());
  if (quiet()) return;
  const HiddenProgress others;
  my.put(my.last_line(std::uncaught_exceptions() > my.exceptions) + "\n");
}

void Progress::set_quiet(bool quiet) {
  const HiddenProgress gone;
  is_quiet = quiet;
}

bool Progress::quiet() { return is_quiet; }

HiddenProgress::HiddenProgress() {
  screen().lock();
  if (hidden++ == 0 && !bars().empty()) bars().back().erase();
}

HiddenProgress::~HiddenProgress() {
  if (--hidden == 0 && !bars().empty()) bars().back().draw();
  screen().unlock();
}

}  // namespace mneme
