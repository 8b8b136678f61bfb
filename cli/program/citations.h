// Citations as people and programs see them.
#pragma once

#include "mneme/memory/memory.h"

#include "cli/program/output.h"
#include <string>
#include <vector>

namespace mneme::cli {

/// "[1] handbook.txt:120 "Travel is approved by ..."", one a line. With `name_files` the memory file stands before the
/// source.
std::string describe_citations(const std::vector<Citation>& citations, bool name_files);

/// What is said of an answer whose words stand in no cited span.
std::string not_a_quotation();

/// The array of `ask --json`.
Json citations_json(const std::vector<Citation>& citations);

/// What is said of a text that ended only because it had come to `max_tokens` tokens.
std::string cut_at(std::int64_t max_tokens);

/// Prints a reply as it comes, without what would steer a terminal; ends it when Ctrl-C was pressed.
std::function<bool(std::string_view)> stream_to_output();

}  // namespace mneme::cli
