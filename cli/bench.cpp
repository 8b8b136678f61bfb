// mneme bench: runs a suite of measurements by name. Its flags are the suites' own declared options.
#include "mneme/core/error.h"
#include "mneme/core/registry.h"

#include "bench/suite.h"
#include "bench/writable.h"
#include "cli/program/interrupt.h"
#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <algorithm>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <map>
#include <optional>

namespace mneme::cli {
namespace {

std::string with_default(const OptionDoc& option) {
  return option.help +
         (option.default_value == "\"\"" ? "" : fmt::format(" (default {})", option.default_value));
}

class Bench final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    About out{Group::program,
              "bench",
              "",
              {{"SUITE", "which suite; its options in brackets or as flags"}},
              {},
              "`mneme bench SUITE --help` shows the flags of one suite, with its defaults and "
              "examples."};
    out.summary = fmt::format("measures mneme on this machine: {}",
                              fmt::join(registry().names(Suite::kKind), ", "));
    out.examples = {"mneme bench speed --help",
                    "mneme bench answers --split tuning --questions 100",
                    "mneme bench 'answers(split=final)' --data ~/data --report answers.md"};
    for (const auto* suite : registry().components(Suite::kKind))
      out.more += fmt::format(" {}: {}.", suite->name, suite->help);
    return out;
  }

  void declare(Flags& flags) override {
    declare_common(flags);
    struct Shared {
      std::string type, help;
      std::vector<std::string> suites;
      bool alike = true;
    };
    std::map<std::string, Shared> shared;
    std::vector<std::string> names;  // in the order in which suites bring them
    for (const auto* suite : registry().components(Suite::kKind)) {
      for (const auto& option : suite->options) {
        auto& of_name = shared[option.name];
        const auto help = with_default(option);
        if (of_name.suites.empty()) {
          names.push_back(option.name);
          of_name.type = option.type;
          of_name.help = help;
        }
        of_name.alike = of_name.alike && of_name.help == help;
        if (of_name.type != option.type) of_name.type = "VALUE";
        of_name.suites.push_back(suite->name);
      }
    }
    for (const auto& name : names) {
      const auto& option = shared.at(name);
      flags("--" + name, options_[name], option.type,
            fmt::format("{}: {}", fmt::join(option.suites, ", "),
                        option.alike ? option.help : "see the help of each"));
    }
  }

  [[nodiscard]] std::optional<About> part(std::string_view positional, Flags& flags) override {
    const auto& suite = registry().find(Suite::kKind, parse_stage(positional).name);
    for (const auto& option : suite.options)
      flags("--" + option.name, options_[option.name], option.type, with_default(option));
    declare_common(flags);
    return About{Group::program,
                 "bench " + suite.name,
                 suite.help,
                 {},
                 registry().make<Suite>(suite.name)->examples()};
  }

  void run(const Invocation& call) override {
    auto stage = parse_stage(call.arguments.at(0));
    const auto& suite = registry().find(Suite::kKind, stage.name);
    for (const auto& [name, given] : options_) {
      if (!given) continue;
      const auto& text = *given;
      const auto option = std::find_if(suite.options.begin(), suite.options.end(),
                                       [&, n = name](const auto& o) { return o.name == n; });
      if (option == suite.options.end())
        throw Error(Errc::usage, fmt::format("bench {}: has no --{}", suite.name, name));
      if (text.empty() && option->type != "string")
        throw Error(Errc::usage, fmt::format("--{}: is empty: give a value ({}) or leave it out",
                                             name, option->type));
      // Texts are taken as they are, whatever is in them; everything else is written as in a spec.
      stage.arguments.push_back(
          {name, option->type == "string"
                     ? Value{text}
                     : parse_stage(fmt::format("x({})", text)).arguments.at(0).value});
    }
    SuiteSetup setup;
    setup.data = data_.empty() ? default_data_folder() : std::filesystem::path(data_);
    setup.language_model = model_;
    setup.embedder = embedder_;
    setup.adapter = adapter_;
    setup.between = stop_if_interrupted;
    setup.seed = call.everywhere.seed;
    bench::check_writable(report_);
    const auto report = registry().make<Suite>(stage)->run(setup);
    if (!report_.empty()) {
      std::ofstream out(report_, std::ios::trunc);
      out << "# mneme bench " << mneme::print(stage) << "\n\n" << report.text;
      if (!out.flush()) throw Error(Errc::io, fmt::format("{}: cannot be written", report_));
    }
    if (json_) {
      print_json(Json::parse(report.figures.dump()));
    } else {
      write(report.text);
    }
  }

 private:
  void declare_common(Flags& flags) {
    flags("--data", data_, "FOLDER", "where data sets lie, a folder each");
    flags("--model", model_, "MODEL", "language model");
    flags("--embedder", embedder_, "MODEL", "model that embeds passages and questions");
    flags("--adapter", adapter_, "NAME",
          "adapter of the language model: a known name, a file, none; unset: its own");
    flags("--report", report_, "FILE", "write the report there, as Markdown");
    flags("--json", json_, "print all figures as one JSON object");
  }

  std::string data_, model_ = "smollm2", embedder_ = "minilm", adapter_, report_;
  bool json_ = false;
  std::map<std::string, std::optional<std::string>> options_;  // of all suites, as given
};

}  // namespace

std::unique_ptr<Verb> bench_verb() { return std::make_unique<Bench>(); }

}  // namespace mneme::cli
