#include "bench/peers/peer.h"

#include "mneme/core/error.h"

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <string_view>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>

extern char** environ;  // NOLINT(readability-redundant-declaration): POSIX leaves it to the program

namespace mneme::bench {
namespace {

Error failed(std::string_view what) {
  return {Errc::io, fmt::format("{}: {}", what, std::strerror(errno))};
}

}  // namespace

std::filesystem::path Peer::default_python() {
  return std::filesystem::path(MNEME_CHECKOUT) / ".venv" / "bin" / "python";
}

Peer::Peer(const std::filesystem::path& python, std::string_view program,
           const std::vector<std::string>& arguments, std::function<void()> between)
    : name_(program), between_(std::move(between)) {
  if (!std::filesystem::exists(python)) {
    throw Error(Errc::not_found,
                fmt::format("no Python at {}: name one with --python", python.string()));
  }
  int there[2], back[2];
  if (pipe2(there, O_CLOEXEC) != 0) throw failed("a pipe");
  if (pipe2(back, O_CLOEXEC) != 0) {
    ::close(there[0]);
    ::close(there[1]);
    throw failed("a pipe");
  }
  const auto script = std::filesystem::path(MNEME_CHECKOUT) / "bench" / "peers" / program;
  std::vector<std::string> words{python.string(), script.string()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  // A peer's threads wait as it would have them, or as whoever started us said: not as ours do.
  const bool ours = std::getenv("MNEME_SPINCOUNT_IS_OURS") != nullptr;
  std::vector<char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view variable(*entry);
    if (ours && (variable.starts_with("GOMP_SPINCOUNT=") ||
                 variable.starts_with("MNEME_SPINCOUNT_IS_OURS=")))
      continue;
    environment.push_back(*entry);
  }
  environment.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, there[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, back[1], STDOUT_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  posix_spawnattr_setpgroup(&attributes, 0);
  const int error =
      posix_spawn(&process_, argv[0], &actions, &attributes, argv.data(), environment.data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  ::close(there[0]);
  ::close(back[1]);
  to_ = there[1];
  from_ = fdopen(back[0], "r");
  if (error != 0) {
    process_ = -1;
    close();
    errno = error;
    throw failed(python.string());
  }
  try {
    if (const auto ready = answer(); ready != "ready")
      throw Error(Errc::unsupported, fmt::format("{}: {}", name_, ready));
  } catch (...) {
    close();
    throw;
  }
}

Peer::~Peer() { close(); }

void Peer::close() {
  if (to_ >= 0) ::close(to_);  // which it takes for the end
  if (from_ != nullptr) std::fclose(from_);
  to_ = -1;
  from_ = nullptr;
  if (process_ > 0 && owes_) ::kill(-process_, SIGKILL);
  if (process_ > 0) waitpid(process_, nullptr, 0);
  process_ = -1;
}

std::string Peer::answer() {
  constexpr int kMilliseconds = 100;
  owes_ = true;
  for (pollfd from{fileno(from_), POLLIN, 0}; poll(&from, 1, kMilliseconds) <= 0;) between_();
  std::string out;
  for (int c = 0; (c = std::fgetc(from_)) != EOF && c != '\n';) out.push_back(static_cast<char>(c));
  owes_ = false;
  if (out.empty()) throw Error(Errc::io, fmt::format("{} has ended without an answer", name_));
  return out;
}

double Peer::ask(const std::string& line) {
  const auto text = line + "\n";
  for (std::size_t sent = 0; sent < text.size();) {
    const auto n = write(to_, text.data() + sent, text.size() - sent);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw failed(name_);
    sent += static_cast<std::size_t>(n);
  }
  const auto said = answer();
  double number = 0;
  const auto [end, error] = std::from_chars(said.data(), said.data() + said.size(), number);
  if (error != std::errc{} || end != said.data() + said.size())
    throw Error(Errc::io, fmt::format("{}: {}", name_, said));
  return number;
}

}  // namespace mneme::bench
