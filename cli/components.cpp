// mneme components: every part that a spec can name, from its one declaration.
#include "mneme/core/error.h"
#include "mneme/core/nearest.h"
#include "mneme/core/registry.h"

#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <algorithm>
#include <fmt/format.h>

namespace mneme::cli {
namespace {

class Components final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::program,
            "components",
            "list the parts that specs are made of, with their options",
            {{"KIND or NAME", "only parts of this kind, or of this name; unset: all", false}},
            {"mneme components", "mneme components kv_stage", "mneme components window --json"}};
  }

  void declare(Flags& flags) override { flags("--json", json_, "print one JSON list of objects"); }

  void run(const Invocation& call) override {
    const auto& all = registry();
    const auto kinds = all.kinds();
    std::vector<const Component*> chosen;
    bool details = false;
    if (call.arguments.empty()) {
      chosen = all.components();
    } else if (const auto& name = call.arguments[0];
               std::find(kinds.begin(), kinds.end(), name) != kinds.end()) {
      chosen = all.components(name);
      details = true;
    } else {
      auto known = kinds;
      for (const auto* component : all.components()) {
        known.push_back(component->name);
        if (component->name == name) chosen.push_back(component);
      }
      if (chosen.empty()) {
        const auto near = did_you_mean(name, known);
        throw Error(Errc::usage,
                    fmt::format("no component or kind '{}'{} `mneme components` lists all", name,
                                near.empty() ? ":" : near));
      }
      details = true;
    }
    if (json_) {
      auto out = Json::array();
      for (const auto* component : chosen) out.push_back(as_json(*component));
      print_json(out);
      return;
    }
    std::string kind;
    for (const auto* component : chosen) {
      if (component->kind != kind) {
        say("{}{}  {}\n", kind.empty() ? "" : "\n", bold(component->kind),
            all.kind_help(component->kind));
        kind = component->kind;
      }
      describe(*component, details);
    }
  }

 private:
  static Json as_json(const Component& component) {
    Json out{{"kind", component.kind},
             {"name", component.name},
             {"help", component.help},
             {"card", component.card},
             {"options", Json::array()}};
    for (const auto& option : component.options) {
      out["options"].push_back({{"name", option.name},
                                {"type", option.type},
                                {"default", option.default_value},
                                {"condition", option.condition},
                                {"help", option.help}});
    }
    return out;
  }

  static void describe(const Component& component, bool details) {
    say("  {:<20} {}{}\n", component.name, component.help,
        component.card.empty() ? "" : faint(" [" + component.card + "]"));
    if (!details) return;
    for (const auto& option : component.options) {
      say("      {:<18} {} = {}{}; {}\n", option.name, option.type,
          option.default_value.empty() ? "{}" : option.default_value,
          option.condition.empty() ? "" : ", " + option.condition, option.help);
    }
  }

  bool json_ = false;
};

}  // namespace

std::unique_ptr<Verb> components_verb() { return std::make_unique<Components>(); }

}  // namespace mneme::cli
