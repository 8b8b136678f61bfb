// mneme bench: runs a suite of measurements by name. Its flags are the suites' own declared options.
#include "mneme/core/error.h"
#include "mneme/core/registry.h"

#include "bench/suite.h"
#include "cli/program/interrupt.h"
#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <algorithm>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <map>

namespace mneme::cli {
namespace {

class Bench final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    About out{Group::program,
              "bench",
              "",
              {{"SUITE", "which suite; its options in brackets or as flags"}},
              {},
              {}};
    out.summary = fmt::format("measures mneme on this machine: {}",
                              fmt::join(registry().names(Suite::kKind), ", "));
    out.examples = {"mneme bench answers --split tuning --questions 100",
                    "mneme bench 'answers(split=final)' --data ~/data --report answers.md"};
    for (const auto* suite : registry().components(Suite::kKind)) {
      std::vector<std::string> options;
      for (const auto& option : suite->options) options.push_back("--" + option.name);
      out.more += fmt::format("{}{}: {}; takes {}", out.more.empty() ? "" : ". ", suite->name,
                              suite->help, fmt::join(options, ", "));
    }
    return out;
  }

  void declare(Flags& flags) override {
    flags("--data", data_, "FOLDER", "where data sets lie, a folder each");
    flags("--model", model_, "MODEL", "language model");
    flags("--embedder", embedder_, "MODEL", "model that embeds passages and questions");
    flags("--adapter", adapter_, "NAME",
          "adapter of the language model: a known name, a file, none; unset: its own");
    flags("--report", report_, "FILE", "write the report there, as Markdown");
    flags("--json", json_, "print all figures as one JSON object");
    for (const auto* suite : registry().components(Suite::kKind)) {
      for (const auto& option : suite->options) {
        if (options_.contains(option.name)) continue;
        const auto help = fmt::format("{}: {}{}", suite->name, option.help,
                                      option.default_value == "\"\""
                                          ? ""
                                          : fmt::format(" (default {})", option.default_value));
        flags("--" + option.name, options_[option.name], option.type, help);
      }
    }
  }

  void run(const Invocation& call) override {
    auto stage = parse_stage(call.arguments.at(0));
    const auto& suite = registry().find(Suite::kKind, stage.name);
    for (const auto& [name, text] : options_) {
      if (text.empty()) continue;
      const auto option = std::find_if(suite.options.begin(), suite.options.end(),
                                       [&, n = name](const auto& o) { return o.name == n; });
      if (option == suite.options.end())
        throw Error(Errc::usage, fmt::format("bench {}: has no --{}", suite.name, name));
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
  std::string data_, model_ = "smollm2", embedder_ = "minilm", adapter_, report_;
  bool json_ = false;
  std::map<std::string, std::string> options_;  // of all suites, as given
};

}  // namespace

std::unique_ptr<Verb> bench_verb() { return std::make_unique<Bench>(); }

}  // namespace mneme::cli
