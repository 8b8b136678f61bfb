#include "cli/program/sampling.h"

#include "mneme/core/error.h"
#include "mneme/core/registry.h"

#include <fmt/format.h>

namespace mneme::cli {

void Sampling::declare(Flags& flags) {
  flags("--temp", settings.temperature, "T", at_least(0),
        "temperature of the choice; 0 always takes the likeliest token");
  flags("--top-k", settings.top_k, "K", at_least(0), "choose among the K likeliest tokens; 0: all");
  flags("--top-p", settings.top_p, "P", within(0, 1),
        "choose among the likeliest tokens that hold this probability; 1: all");
  flags("--min-p", settings.min_p, "P", within(0, 1),
        "leave out tokens below this share of the likeliest one's probability; 0: none");
  flags("--repeat-penalty", settings.repetition_penalty, "X", above(0),
        "make tokens of the last text less likely; 1: off");
  flags("--repeat-window", settings.repetition_window, "N", at_least(0),
        "tokens that the penalty looks at; 0: all");
  flags("--sampler", spec, "SPEC",
        "the same as a chain of stages, \"top_k(40) | temperature(0.8)\"; see `mneme components "
        "logits_stage`");
}

Chain Sampling::chain(const Origins& origins) const {
  if (spec.empty()) return decode::sampler_chain(settings);
  const auto of_spec = origins.find("sampler");
  const bool typed = of_spec != origins.end() && of_spec->second == kCommandLine;
  for (const auto* name : {"temp", "top-k", "top-p", "min-p", "repeat-penalty", "repeat-window"}) {
    const auto other = origins.find(name);
    if (other == origins.end() || (typed && other->second != kCommandLine)) continue;
    throw Error(Errc::usage,
                fmt::format("--sampler stands in place of --{}: give one or the other", name));
  }
  auto chain = parse_chain(spec);
  for (auto& stage : chain)
    stage = registry()
                .find(LogitsStage::kKind, stage.name)
                .canonicalize(stage);  // wrong ones are refused before a model is loaded
  return chain;
}

}  // namespace mneme::cli
