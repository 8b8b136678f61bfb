#include "cli/program/run.h"

#include "mneme/core/error.h"
#include "mneme/core/log.h"
#include "mneme/core/nearest.h"
#include "mneme/core/progress.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/util/Exception.h>
#include <torch/version.h>

#include "cli/program/config.h"
#include "cli/program/flags.h"
#include "cli/program/help.h"
#include "cli/program/interrupt.h"
#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fmt/format.h>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <unistd.h>
#include <vector>

namespace mneme::cli {
namespace {

constexpr int kDone = 0, kFailed = 1, kWrongUsage = 2;

/// More threads than the cores can take by turns only wait for each other, in the end for ever.
Check threads_of_this_machine() {
  constexpr std::int64_t kThreadsPerCore = 4;
  const auto cores = std::max<std::int64_t>(1, ::sysconf(_SC_NPROCESSORS_ONLN));
  auto check = within(0, static_cast<double>(kThreadsPerCore * cores));
  check.text +=
      fmt::format(", {} for each of this machine's {}", kThreadsPerCore, counted(cores, "core"));
  return check;
}

/// The flags of every verb, and those that ask for something else than the verb's work.
struct Program {
  Everywhere everywhere;
  std::string config;
  bool help = false, version = false, print_config = false;

  void declare(Flags& flags) {
    flags("-q,--quiet", everywhere.quiet, "only results and errors: no progress, no notes");
    flags("--threads", everywhere.threads, "N", threads_of_this_machine(),
          "threads to compute with; 0: as many as there are cores");
    flags("--seed", everywhere.seed, "N",
          "what chance starts from: the same seed gives the same output");
    flags("--log-level", everywhere.log_level, log::level_names(), "how much is said on stderr");
    flags("--config", config, "FILE",
          "a TOML file of settings; unset: ~/.config/mneme/config.toml if it is there");
    flags("--print-config", print_config,
          "print the settings in force and where each comes from, and do nothing else");
    flags("-h,--help", help, "this page");
    flags("--version", version, "the version of mneme and of libtorch");
    flags.find("config")->in_config = false;
    for (const auto* name : {"print-config", "help", "version"}) {
      flags.find(name)->in_config = false;
      flags.find(name)->in_environment = false;
    }
  }
};

/// The first argument that is no flag of Program and no value of one, or nothing.
std::optional<std::size_t> find_verb(const std::vector<std::string>& arguments) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto& argument = arguments[i];
    if (argument.size() < 2 || argument[0] != '-') return i;
    for (const auto* with_value : {"--threads", "--seed", "--log-level", "--config"})
      i += argument == with_value;
  }
  return std::nullopt;
}

/// What is left beside flags, as positionals; throws Error(usage) for an unknown flag.
std::vector<std::string> positionals(const std::vector<std::string>& rest, const Flags& own,
                                     const Flags& everywhere) {
  std::vector<std::string> out;
  bool only_positionals = false;
  for (const auto& argument : rest) {
    if (!only_positionals && argument == "--") {
      only_positionals = true;
    } else if (!only_positionals && argument.size() > 1 && argument[0] == '-') {
      const auto flag = argument.substr(0, argument.find('='));
      auto known = own.spellings();
      for (auto& name : everywhere.spellings()) known.push_back(std::move(name));
      throw Error(Errc::usage, fmt::format("unknown flag {}{}", flag, did_you_mean(flag, known)));
    } else {
      out.push_back(argument);
    }
  }
  return out;
}

void check_count(const std::vector<std::string>& given, const About& about) {
  std::size_t least = 0;
  bool unlimited = false;
  std::string last_required;
  for (const auto& positional : about.positionals) {
    least += positional.required;
    unlimited = unlimited || positional.repeated;
  }
  if (given.size() < least) {
    // The first required one that has got nothing.
    std::size_t at = 0;
    for (const auto& positional : about.positionals) {
      if (positional.required && at++ == given.size()) {
        throw Error(Errc::usage,
                    fmt::format("{} is missing; usage: {}", positional.name, usage_line(about)));
      }
    }
  }
  if (!unlimited && given.size() > about.positionals.size()) {
    throw Error(Errc::usage, fmt::format("'{}' is one argument too many; usage: {}",
                                         given[about.positionals.size()], usage_line(about)));
  }
}

KnownSettings known_settings(const std::vector<std::unique_ptr<Verb>>& verbs) {
  KnownSettings out;
  const auto names_of = [](const Flags& flags) {
    std::vector<std::string> names;
    for (const auto& setting : flags.settings()) {
      if (setting.in_config) names.push_back(setting.name);
    }
    return names;
  };
  CLI::App scratch;
  Flags everywhere(scratch);
  Program program;
  scratch.set_help_flag();
  program.declare(everywhere);
  out.anywhere = names_of(everywhere);
  for (const auto& verb : verbs) {
    CLI::App app;
    app.set_help_flag();
    Flags flags(app);
    verb->declare(flags);
    auto names = names_of(flags);
    out.anywhere.insert(out.anywhere.end(), names.begin(), names.end());
    names.insert(names.end(), out.anywhere.begin(),
                 out.anywhere.begin() + static_cast<std::ptrdiff_t>(names_of(everywhere).size()));
    out.by_verb.emplace_back(verb->about().name, std::move(names));
  }
  return out;
}

void print_version() { say("mneme {} (libtorch {})\n", MNEME_VERSION, TORCH_VERSION); }

/// The help of the part of a verb that the first positional names, else the verb's.
std::string help_for(Verb& verb, CLI::App& app, const Flags& own, const Flags& everywhere,
                     std::vector<std::string> arguments) {
  try {
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
    app.parse(std::move(arguments));
    const auto given = positionals(app.remaining(), own, everywhere);
    CLI::App of_part;
    Flags flags(of_part);
    if (!given.empty()) {
      if (const auto part = verb.part(given.front(), flags))
        return verb_help(*part, flags, everywhere);
    }
  } catch (const CLI::ParseError&) {  // help is shown whatever stands beside it
  } catch (const Error&) {
  }
  return verb_help(verb.about(), own, everywhere);
}

int run_verb(Verb& verb, const std::vector<std::unique_ptr<Verb>>& verbs,
             std::vector<std::string> arguments) {
  const auto about = verb.about();
  CLI::App app;
  app.set_help_flag();
  app.allow_extras();
  Program program;
  Flags own(app), everywhere(app);
  verb.declare(own);
  program.declare(everywhere);
  const auto asks_for_help = [&] {
    return std::any_of(arguments.begin(), std::find(arguments.begin(), arguments.end(), "--"),
                       [](const auto& a) { return a == "--help" || a == "-h"; });
  };
  if (asks_for_help()) {
    write(help_for(verb, app, own, everywhere, arguments));
    return kDone;
  }
  try {
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    std::string reason = error.what();
    if (const auto at = reason.find(": 1 required value missing"); at != std::string::npos)
      reason = reason.substr(0, at) + " needs a value";
    throw Error(Errc::usage, reason);
  }
  auto given = positionals(app.remaining(), own, everywhere);
  settle(everywhere, about.name, nullptr);  // the config file may be named here
  std::optional<ConfigFile> file;
  if (!program.config.empty()) {
    file.emplace(program.config, known_settings(verbs));
  } else if (const auto path = default_config_file()) {
    file.emplace(*path, known_settings(verbs));
  }
  settle(everywhere, about.name, file ? &*file : nullptr);
  if (program.version) {
    print_version();
    return kDone;
  }
  settle(own, about.name, file ? &*file : nullptr);
  if (program.print_config) {
    write(fmt::format("# what `mneme {}` runs with\n", about.name) + print_config(own) +
          print_config(everywhere));
    return kDone;
  }
  check_count(given, about);
  const bool level_is_chosen = everywhere.find("log-level")->origin != "default";
  log::set_level(program.everywhere.quiet && !level_is_chosen
                     ? log::Level::error
                     : log::parse_level(program.everywhere.log_level).value());
  Progress::set_quiet(program.everywhere.quiet);
  if (program.everywhere.threads > 0)
    at::set_num_threads(static_cast<int>(program.everywhere.threads));
  Origins origins;
  for (const auto& setting : own.settings()) {
    if (setting.origin != "default") origins.emplace(setting.name, setting.origin);
  }
  watch_interrupts();
  verb.run({std::move(given), program.everywhere, std::move(origins)});
  return kDone;
}

int dispatch(std::vector<std::string> arguments) {
  const auto verbs = all_verbs();
  const auto overview_page = [&] {
    CLI::App app;
    app.set_help_flag();
    Flags everywhere(app);
    Program program;
    program.declare(everywhere);
    return overview(verbs, everywhere);
  };
  auto at = find_verb(arguments);
  if (at && arguments[*at] == "help") {  // `mneme help ask` is `mneme ask --help`
    arguments.erase(arguments.begin() + static_cast<std::ptrdiff_t>(*at));
    arguments.emplace_back("--help");
    at = find_verb(arguments);
  }
  if (!at) {
    if (std::find(arguments.begin(), arguments.end(), "--version") != arguments.end()) {
      print_version();
      return kDone;
    }
    if (std::any_of(arguments.begin(), arguments.end(),
                    [](const auto& a) { return a == "--help" || a == "-h"; })) {
      write(overview_page());
      return kDone;
    }
    if (arguments.empty()) {
      std::fputs(overview_page().c_str(), stderr);
      return kWrongUsage;
    }
    throw Error(Errc::usage, "no verb is given: see `mneme --help`");
  }
  const auto name = arguments[*at];
  std::vector<std::string> names;
  for (const auto& verb : verbs) {
    names.push_back(verb->about().name);
    if (names.back() != name) continue;
    arguments.erase(arguments.begin() + static_cast<std::ptrdiff_t>(*at));
    return run_verb(*verb, verbs, std::move(arguments));
  }
  const auto near = did_you_mean(name, names);
  throw Error(Errc::usage, fmt::format("no verb '{}'{} `mneme --help` lists all", name,
                                       near.empty() ? ":" : near));
}

int fail(int status, std::string_view reason) {
  const HiddenProgress hidden;
  std::fflush(
      stdout);  // what was written before stands before the reason, where both go to one terminal
  std::fputs(("mneme: " + one_line(reason) + "\n").c_str(), stderr);
  return status;
}

}  // namespace

int run(int argc, char** argv) {
  std::signal(
      SIGPIPE,
      SIG_IGN);  // a closed pipe is met where it is written to, so that files are closed in order
  try {
    const auto status = dispatch({argv + std::min(argc, 1), argv + argc});
    flush();
    return status;
  } catch (const OutputClosed&) {
    return kFailed;
  } catch (const Interrupted& end) {
    return fail(kFailed, end.kept.empty() ? "interrupted" : "interrupted: " + end.kept);
  } catch (const Error& error) {
    return fail(error.code() == Errc::usage ? kWrongUsage : kFailed, error.what());
  } catch (const std::bad_alloc&) {
    return fail(kFailed, "out of memory");
  } catch (const c10::Error& error) {
    const std::string_view message = error.what_without_backtrace();
    if (message.find("not enough memory") != std::string_view::npos ||
        message.find("allocate memory") != std::string_view::npos) {
      return fail(kFailed, "out of memory");
    }
    return fail(kFailed, message.substr(0, message.find('\n')));
  } catch (const nlohmann::json::exception& error) {
    return fail(kFailed, fmt::format("a JSON text is not what it should be: {}", error.what()));
  } catch (const std::filesystem::filesystem_error& error) {
    return fail(kFailed, error.path1().empty() ? error.code().message()
                                               : fmt::format("{}: {}", error.path1().string(),
                                                             error.code().message()));
  } catch (const std::exception& error) {
    return fail(kFailed, error.what());
  }
}

}  // namespace mneme::cli
