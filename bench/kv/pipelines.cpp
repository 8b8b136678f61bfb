#include "bench/kv/pipelines.h"

#include "mneme/core/error.h"
#include "mneme/models/kv_plan.h"
#include "mneme/text/white_space.h"

#include <algorithm>
#include <fmt/format.h>
#include <utility>

namespace mneme::bench {
namespace {

/// The parts between semicolons that stand outside quotes, empty ones too.
std::vector<std::string_view> parts_of(std::string_view specs) {
  std::vector<std::string_view> out;
  bool quoted = false;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (quoted && specs[i] == '\\') {
      ++i;
    } else if (specs[i] == '"') {
      quoted = !quoted;
    } else if (specs[i] == ';' && !quoted) {
      out.push_back(specs.substr(begin, i - begin));
      begin = i + 1;
    }
  }
  out.push_back(specs.substr(begin));
  return out;
}

}  // namespace

std::vector<Pipeline> parse_pipelines(std::string_view specs, const LanguageModel* model) {
  std::vector<Pipeline> out{{std::string(kFullCache), nullptr}};
  if (text::trimmed(specs).empty()) return out;
  for (std::size_t number = 1; const auto part : parts_of(specs)) {
    const auto wrong = [&](std::string_view why) {
      return Error(Errc::usage,
                   fmt::format("--kv: pipeline {}, '{}': {}", number, text::trimmed(part), why));
    };
    if (text::trimmed(part).empty())
      throw Error(Errc::usage, fmt::format("--kv: pipeline {} is empty: write a spec between the "
                                           "semicolons, or leave one of them out",
                                           number));
    std::shared_ptr<const KvPlan> plan;
    try {
      plan = model ? kv_plan(part, *model) : std::make_shared<const KvPlan>(parse_chain(part));
    } catch (const Error& error) {
      throw wrong(error.what());
    }
    auto name = print(plan->chain());
    if (std::any_of(out.begin(), out.end(), [&](const auto& p) { return p.name == name; }))
      throw wrong("stands in the list twice");
    out.push_back({std::move(name), std::move(plan)});
    ++number;
  }
  return out;
}

}  // namespace mneme::bench
