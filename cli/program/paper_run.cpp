#include "cli/program/paper_run.h"

#include "mneme/core/error.h"
#include "mneme/kernels/level.h"

#include <ATen/Parallel.h>
#include <torch/version.h>

#include "cli/program/interrupt.h"
#include "cli/program/shell.h"
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <fmt/format.h>
#include <optional>
#include <poll.h>
#include <spawn.h>
#include <string_view>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;  // NOLINT(readability-redundant-declaration): POSIX leaves it to the program

namespace mneme::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kThisProgram = "/proc/self/exe";
constexpr int kPollMilliseconds = 100;
constexpr std::array<std::string_view, 4> kKeptSettings = {"MNEME_DATA", "MNEME_LEVEL",
                                                           "MNEME_MODELS", "MNEME_PYTHON"};
Error failed(std::string_view what) {
  return {Errc::io, fmt::format("{}: {}", what, std::strerror(errno))};
}

/// The environment without settings of ours, and without those that would point git at another checkout.
std::vector<std::string> bare_environment() {
  std::vector<std::string> out;
  for (char** at = environ; *at != nullptr; ++at) {
    const std::string_view variable(*at);
    const auto name = variable.substr(0, variable.find('='));
    const bool kept =
        std::find(kKeptSettings.begin(), kKeptSettings.end(), name) != kKeptSettings.end();
    if (kept || (!name.starts_with("MNEME_") && !name.starts_with("GIT_")))
      out.emplace_back(variable);
  }
  return out;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> out;
  for (auto& word : words) out.push_back(word.data());
  out.push_back(nullptr);
  return out;
}

/// What a process printed and how it ended: its exit status, or 128 and the signal.
struct Ended {
  int status = 0;
  std::string out;
};

/// Runs a program to its end; a path with a slash is taken as it is, other names are looked for as shells do.
Ended run_process(const std::string& program, std::vector<std::string> words, bool quiet) {
  int from[2];
  if (::pipe2(from, O_CLOEXEC) != 0) throw failed("a pipe");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, from[1], STDOUT_FILENO);
  if (quiet) posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  auto environment = bare_environment();
  pid_t process = -1;
  const int error = posix_spawnp(&process, program.c_str(), &actions, nullptr,
                                 pointers(words).data(), pointers(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  ::close(from[1]);
  if (error != 0) {
    ::close(from[0]);
    errno = error;
    throw failed(program);
  }
  Ended out;
  bool told = false;
  std::array<char, 1 << 16> buffer;
  for (;;) {
    if (interrupted() && !told) {
      ::kill(process, SIGTERM);
      told = true;
    }
    pollfd ready{from[0], POLLIN, 0};
    if (::poll(&ready, 1, kPollMilliseconds) <= 0) continue;
    const auto n = ::read(from[0], buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    out.out.append(buffer.data(), static_cast<std::size_t>(n));
  }
  ::close(from[0]);
  int status = 0;
  while (::waitpid(process, &status, 0) < 0 && errno == EINTR) continue;
  out.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  stop_if_interrupted();
  return out;
}

/// The commit that the program's checkout stands on, and whether its sources differ from it. Cards and reports do not count:
/// each run writes some, and a claim is told by its digest.
void note_commit(const fs::path& program, Measured& out) {
  out.commit = "unknown";
  out.dirty = true;
  std::error_code ignored;
  auto path = fs::read_symlink(program, ignored);
  if (path.empty()) path = program;
  const auto git = [&](std::vector<std::string> words) -> std::optional<std::string> {
    const std::vector<std::string> head{"git", "--no-optional-locks", "-C",
                                        path.parent_path().string()};
    words.insert(words.begin(), head.begin(), head.end());
    try {
      auto ended = run_process("git", std::move(words), true);
      if (ended.status != 0) return std::nullopt;
      return std::move(ended.out);
    } catch (const Error&) {
      return std::nullopt;  // no git here
    }
  };
  const auto head = git({"rev-parse", "HEAD"});
  if (!head || head->empty()) return;
  out.commit = head->substr(0, head->find('\n'));
  const auto changes = git(
      {"status", "--porcelain", "--", ":/", ":(top,exclude)papers", ":(top,exclude)bench/reports"});
  out.dirty = !changes || !changes->empty();
}

std::string today() {
  const auto now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  return fmt::format("{:04}-{:02}-{:02}", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday);
}

std::string machine(std::int64_t threads) {
  const auto count = threads > 0 ? threads : at::get_num_threads();
  return fmt::format("{}, {}, {}", kernels::cpu_model(), kernels::name(kernels::level()),
                     counted(count, "thread"));
}

}  // namespace

const std::vector<std::string>& command_of(const Card& card, bool smoke) {
  const auto& command = smoke ? card.claim.smoke : card.claim.command;
  if (command.empty()) {
    throw Error(Errc::usage, fmt::format("{}: has no 'smoke' in [claim]: run it without --smoke",
                                         card.path.string()));
  }
  return command;
}

ClaimRun run_claim(const Card& card, const RunSettings& settings) {
  const auto& command = command_of(card, settings.smoke);
  ClaimRun out;
  auto& measured = out.measured;
  measured.claim_digest = claim_digest(card.claim);
  measured.command_digest = command_digest(card);
  measured.seed = settings.seed;
  measured.machine = machine(settings.threads);
  measured.torch = TORCH_VERSION;
  measured.date = today();
  const auto program = settings.program.empty() ? fs::path(kThisProgram) : settings.program;
  note_commit(program, measured);

  auto words = resolved_command(card, command);
  std::vector<std::string> given{"--json", "--seed", std::to_string(settings.seed), "--config",
                                 "/dev/null"};
  if (settings.threads > 0) {
    given.emplace_back("--threads");
    given.push_back(std::to_string(settings.threads));
  }
  if (settings.quiet) given.emplace_back("--quiet");
  words.insert(words.begin() + 1, given.begin(), given.end());
  words.insert(words.begin(), "mneme");
  const auto begun = std::chrono::steady_clock::now();
  const auto ended = run_process(program.string(), std::move(words), false);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
  measured.seconds = took.count();
  const auto refuse = [&](const std::string& what) {
    return Error(Errc::invalid, fmt::format("{}: {}; the command: mneme {}", card.path.string(),
                                            what, shell_line(command)));
  };
  if (ended.status != 0) {
    throw refuse(ended.status > 128
                     ? fmt::format("its command was ended by signal {}", ended.status - 128)
                     : fmt::format("its command failed with status {}", ended.status));
  }
  try {
    out.figures = Json::parse(ended.out);
  } catch (const Json::exception&) {
    throw refuse("its command printed something else than one JSON value");
  }
  try {
    measured.criteria = judge(card.claim.criteria, out.figures);
  } catch (const Error& error) {
    throw refuse(error.what());
  }
  measured.verdict = verdict_of(measured.criteria);
  return out;
}

}  // namespace mneme::cli
