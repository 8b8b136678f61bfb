// mneme models: which models are here.
#include "mneme/core/error.h"
#include "mneme/core/params.h"
#include "mneme/models/adapter_file.h"
#include "mneme/models/architecture.h"
#include "mneme/models/locate.h"
#include "mneme/weights/checkpoint.h"

#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <filesystem>
#include <fmt/format.h>

namespace mneme::cli {
namespace {

struct Entry {
  LocatedModel located;
  std::string architecture, format, problem;
  std::int64_t parameters = 0, weight_bytes = 0;
};

/// What a checkpoint says of itself; weights are mapped, not read.
Entry look_at(const LocatedModel& located) {
  Entry out{located, "", "", "", 0, 0};
  const auto checkpoint = open_checkpoint(located.path);
  out.format = checkpoint->format();
  Params params;
  const auto architecture = load_architecture(*checkpoint, params);
  out.architecture = architecture.name;
  out.parameters = params.count();
  for (const auto& name : params.names()) {
    if (const auto parameter = params.find(name); parameter->stored)
      out.weight_bytes += parameter->stored->bytes();
  }
  if (out.located.kind.empty())
    out.located.kind = architecture.spec.name == "encoder" ? "embedder" : "language model";
  return out;
}

struct AdapterEntry {
  std::string name;
  std::filesystem::path path;
  AdapterInfo info;
  std::int64_t bytes = 0;
  std::string problem;
};

AdapterEntry look_at_adapter(const std::string& name) {
  AdapterEntry out{name, locate_adapter(name), {}, 0, ""};
  try {
    out.info = read_adapter_info(out.path);
    out.bytes = static_cast<std::int64_t>(std::filesystem::file_size(out.path));
  } catch (const Error& error) {  // one broken adapter does not hide the others
    out.problem = error.what();
  }
  return out;
}

class Models final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::model,
            "models",
            "list the models and adapters that are found by name, or look at other models",
            {{"MODEL", "a name, a GGUF file or a model folder; unset: all that are found", false,
              true}},
            {"mneme models", "mneme models ~/models/some.gguf --json"}};
  }

  void declare(Flags& flags) override { flags("--json", json_, "print one JSON object"); }

  void run(const Invocation& call) override {
    std::vector<Entry> entries;
    if (call.arguments.empty()) {
      for (const auto& located : known_models()) {
        try {
          entries.push_back(look_at(located));
        } catch (const Error& error) {  // one broken model does not hide the others
          entries.push_back({located, "", "", error.what(), 0, 0});
        }
      }
    } else {
      for (const auto& name : call.arguments) entries.push_back(look_at(locate_model(name)));
    }
    std::vector<AdapterEntry> adapters;
    if (call.arguments.empty()) {
      for (const auto& name : known_adapters()) adapters.push_back(look_at_adapter(name));
    }
    if (json_) {
      Json out{{"models", Json::array()}, {"adapters", Json::array()}};
      for (const auto& entry : entries) {
        out["models"].push_back({{"name", entry.located.name},
                                 {"path", entry.located.path.string()},
                                 {"kind", entry.located.kind},
                                 {"architecture", entry.architecture},
                                 {"parameters", entry.parameters},
                                 {"format", entry.format},
                                 {"weight_bytes", entry.weight_bytes}});
        if (!entry.problem.empty()) out["models"].back()["problem"] = entry.problem;
      }
      for (const auto& adapter : adapters) {
        out["adapters"].push_back({{"name", adapter.name},
                                   {"path", adapter.path.string()},
                                   {"model", adapter.info.model},
                                   {"rank", adapter.info.rank},
                                   {"bytes", adapter.bytes}});
        if (!adapter.problem.empty()) out["adapters"].back()["problem"] = adapter.problem;
      }
      print_json(out);
      return;
    }
    if (entries.empty())
      say("no model is found by name: run `make setup`, or set MNEME_MODELS to the site-packages "
          "folder that holds the model packages\n");
    for (const auto& entry : entries) {
      say("{}  {}\n", bold(fmt::format("{:<10}", one_line(entry.located.name))),
          entry.located.kind);
      if (entry.problem.empty()) {
        say("  {}, {} parameters in {} ({})\n", entry.architecture,
            with_separators(entry.parameters), as_size(entry.weight_bytes), entry.format);
      } else {
        say("  cannot be used: {}\n", one_line(entry.problem));
      }
      say("  {}\n", one_line(entry.located.path.string()));
    }
    for (const auto& adapter : adapters) {
      const auto name = bold(fmt::format("{:<10}", one_line(adapter.name)));
      if (adapter.problem.empty()) {
        say("{}  adapter of {}\n", name, one_line(adapter.info.model));
        say("  LoRA of rank {}, {}\n", adapter.info.rank, as_size(adapter.bytes));
      } else {
        say("{}  adapter\n  cannot be used: {}\n", name, one_line(adapter.problem));
      }
      say("  {}\n", one_line(adapter.path.string()));
    }
  }

 private:
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Verb> models_verb() { return std::make_unique<Models>(); }

}  // namespace mneme::cli
