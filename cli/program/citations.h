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

/// The array of `ask --json`.
Json citations_json(const std::vector<Citation>& citations);

/// The line of a document on which a byte stands, from 1.
std::int64_t line_of(const MemoryFile& file, std::int64_t document, std::int64_t byte);

/// Prints a reply as it comes, without what would steer a terminal; ends it when Ctrl-C was pressed.
std::function<bool(std::string_view)> stream_to_output();

}  // namespace mneme::cli
