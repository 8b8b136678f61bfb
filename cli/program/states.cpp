#include "cli/program/states.h"

#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/core/spec.h"
#include "mneme/kv/stage.h"

#include "cli/program/output.h"
#include <algorithm>
#include <fmt/format.h>
#include <utility>

namespace mneme::cli {
namespace {

Stage with_defaults(const Stage& stage) {
  const auto& component = registry().find(KvStage::kKind, stage.name);
  auto out = component.canonicalize(stage);
  const auto given = std::exchange(out.arguments, {});
  for (const auto& option : component.options) {
    const auto at = std::find_if(given.begin(), given.end(), [&](const Argument& argument) {
      return argument.key == option.name;
    });
    out.arguments.push_back(at != given.end() ? *at
                                              : parse_stage(fmt::format("stage({}={})", option.name,
                                                                        option.default_value))
                                                    .arguments.front());
  }
  return out;
}

}  // namespace

std::string describe_states(const Usage& usage) {
  const auto smaller = usage.consolidated_spans - usage.text_only_spans;
  auto out = fmt::format("of {} {} states", counted(usage.spans, "span"),
                         counted(usage.spans_with_states, "has", "have"));
  if (smaller > 0)
    out += fmt::format(", {} of them made smaller for the budget", with_separators(smaller));
  const auto text_only = usage.spans - usage.spans_with_states;
  if (text_only > 0) out += fmt::format("; {} text only", counted(text_only, "is", "are"));
  return out;
}

std::string spelled_out(std::string_view kv) {
  try {
    auto chain = parse_chain(kv);
    for (auto& stage : chain) stage = with_defaults(stage);
    return print(chain);
  } catch (const Error&) {
    return std::string(kv);
  }
}

}  // namespace mneme::cli
