#include "cli/program/states.h"

#include "cli/program/output.h"
#include <fmt/format.h>

namespace mneme::cli {

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

}  // namespace mneme::cli
