#include "cli/program/input.h"

#include <cerrno>
#include <clocale>
#include <cstdlib>
#include <cstring>
#include <cwchar>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#ifdef MNEME_LINE_EDITING
#include <histedit.h>
#endif

#include "mneme/core/error.h"
#include "mneme/core/log.h"
#include "mneme/text/document.h"

#include "cli/program/interrupt.h"
#include "cli/program/output.h"

namespace mneme::cli {
namespace {

constexpr std::size_t kMostLineBytes = std::size_t{16} << 20;

constexpr const char* kStandardInput = "standard input";

// Waits for a descriptor and reads up to `most` bytes of it; 0 at its end. Throws Interrupted.
std::size_t read_now(int descriptor, const std::string& what, char* buffer, std::size_t most) {
  while (true) {
    stop_if_interrupted();
    // A signal ends poll, while read would be started again; one that comes just before it is noticed a little later.
    pollfd wait{descriptor, POLLIN, 0};
    const auto ready = ::poll(&wait, 1, 500);
    if (ready < 0 && errno != EINTR)
      throw Error(Errc::io, fmt::format("{} cannot be read: {}", what, std::strerror(errno)));
    if (ready <= 0) continue;
    const auto n = ::read(descriptor, buffer, most);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0)
      throw Error(Errc::io, fmt::format("{} cannot be read: {}", what, std::strerror(errno)));
    return static_cast<std::size_t>(n);
  }
}

// Appends what a descriptor has now; false at its end.
bool read_some(std::string& into, int descriptor = STDIN_FILENO,
               const std::string& what = kStandardInput) {
  char buffer[1 << 16];
  const auto n = read_now(descriptor, what, buffer, sizeof buffer);
  into.append(buffer, n);
  return n > 0;
}

void check_size(const std::string& text, const std::string& what, std::int64_t most_bytes) {
  if (static_cast<std::int64_t>(text.size()) > most_bytes)
    throw Error(Errc::full, fmt::format("{} holds more than {}", what, as_size(most_bytes)));
}

#ifdef MNEME_LINE_EDITING
// A character for libedit: -1 on failure, 0 at the end. Its own reader would sleep through the first Ctrl-C.
int read_character(EditLine*, wchar_t* out) {
  std::mbstate_t state{};
  char byte = 0;
  while (true) {
    try {
      if (read_now(STDIN_FILENO, kStandardInput, &byte, 1) == 0) return 0;
    } catch (const Interrupted&) {
      return 0;
    } catch (const Error&) {
      return -1;
    }
    const auto n = std::mbrtowc(out, &byte, 1, &state);
    if (n == static_cast<std::size_t>(-2)) continue;  // the character goes on
    if (n == static_cast<std::size_t>(-1)) {
      state = {};
      continue;
    }
    return 1;
  }
}
#endif

}  // namespace

std::string read_input(std::int64_t most_bytes) {
  std::string out;
  while (read_some(out)) check_size(out, kStandardInput, most_bytes);
  return out;
}

std::string read_pipe(const std::string& path, const std::string& label, std::int64_t most_bytes) {
  const auto what = label + ":";
  // Not to wait in open for a writer: there no signal that is to end things in order gets through.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (descriptor < 0)
    throw Error(Errc::io, fmt::format("{} cannot be opened: {}", what, std::strerror(errno)));
  const auto close = [](const int* open) { ::close(*open); };
  const std::unique_ptr<const int, decltype(close)> closed(&descriptor, close);
  std::string out;
  std::size_t searched = 0;
  while (out.find('\0', searched) == std::string::npos) {
    searched = out.size();
    if (!read_some(out, descriptor, what)) break;
    check_size(out, what, most_bytes);
  }
  return out;
}

std::string text_or_input(const std::string& argument, const std::string& what) {
  auto text = argument == "-" ? read_input() : argument;
  if (argument == "-") {
    while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  }
  check_utf8(text, what);
  return text;
}

void check_utf8(const std::string& text, const std::string& what) {
  if (const auto at = find_invalid_utf8(text); at >= 0)
    throw Error(Errc::invalid, fmt::format("the {} is not UTF-8, from byte {} on", what, at));
}

void warn_of_lost_bytes(std::int64_t bytes, const std::string& what) {
  if (bytes <= 0) return;
  log::warn("{} of the {} {} no token in this vocabulary and {} left out", counted(bytes, "byte"),
            what, bytes == 1 ? "has" : "have", bytes == 1 ? "is" : "are");
}

#ifdef MNEME_LINE_EDITING

struct LineReader::Terminal {
  Terminal() {
    // What a character is, for moving over it.
    if (const auto* set = std::setlocale(LC_CTYPE, ""); !set || MB_CUR_MAX == 1)
      std::setlocale(LC_CTYPE, "C.UTF-8");
    editor = el_init("mneme", stdin, stdout, stderr);
    if (!editor) return;
    history = history_init();
    if (history) {
      HistEvent event;
      ::history(history, &event, H_SETSIZE, 500);
      el_set(editor, EL_HIST, ::history, history);
    }
    el_set(editor, EL_CLIENTDATA, this);
    el_set(editor, EL_GETCFN, read_character);
    el_set(
        editor, EL_PROMPT, +[](EditLine* el) -> char* {
          Terminal* self = nullptr;
          el_get(el, EL_CLIENTDATA, &self);
          return self->prompt.data();
        });
    el_set(editor, EL_EDITOR, "emacs");
    // Ctrl-C comes as a character, so that it can end the program with its files closed.
    el_set(editor, EL_SETTY, "-d", "-isig", static_cast<char*>(nullptr));
    el_set(
        editor, EL_ADDFN, "mneme-interrupt", "empty the line, or leave",
        +[](EditLine* el, int) -> unsigned char {
          const auto* line = el_line(el);
          if (line->lastchar == line->buffer) return CC_EOF;
          el_cursor(el, static_cast<int>(line->lastchar - line->cursor));
          el_deletestr(el, static_cast<int>(line->lastchar - line->buffer));
          return CC_REFRESH;
        });
    el_set(editor, EL_BIND, "^C", "mneme-interrupt", static_cast<char*>(nullptr));
    el_source(editor, nullptr);
  }
  ~Terminal() {
    if (editor) el_end(editor);
    if (history) history_end(history);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  EditLine* editor = nullptr;
  History* history = nullptr;
  std::string prompt;
};

#else

struct LineReader::Terminal {};

#endif

LineReader::LineReader() {
#ifdef MNEME_LINE_EDITING
  if (input_is_terminal() && output_is_terminal()) terminal_ = std::make_unique<Terminal>();
#endif
}

LineReader::~LineReader() = default;

std::optional<std::string> LineReader::next(const std::string& prompt) {
#ifdef MNEME_LINE_EDITING
  if (terminal_ && terminal_->editor) {
    terminal_->prompt = prompt;
    flush();
    int length = 0;
    const char* line = el_gets(terminal_->editor, &length);
    if (!line || length <= 0) {
      say("\n");
      return std::nullopt;
    }
    std::string out(line, static_cast<std::size_t>(length));
    while (!out.empty() && (out.back() == '\n' || out.back() == '\r')) out.pop_back();
    if (terminal_->history && !out.empty()) {
      HistEvent event;
      ::history(terminal_->history, &event, H_ENTER, out.c_str());
    }
    return out;
  }
#endif
  if (input_is_terminal()) {
    say("{}", prompt);
    flush();
  }
  std::size_t searched = 0;
  while (true) {
    const auto end = held_.find('\n', searched);
    if (end != std::string::npos || (ended_ && !held_.empty())) {
      auto line = held_.substr(0, end);
      held_.erase(0, end == std::string::npos ? held_.size() : end + 1);
      if (!line.empty() && line.back() == '\r') line.pop_back();
      return line;
    }
    if (ended_) return std::nullopt;
    searched = held_.size();
    if (searched > kMostLineBytes)
      throw Error(Errc::full, fmt::format("a line of standard input is longer than {}",
                                          as_size(kMostLineBytes)));
    try {
      ended_ = !read_some(held_);
    } catch (const Interrupted&) {
      return std::nullopt;
    }
  }
}

}  // namespace mneme::cli
