#include "cli/program/citations.h"

#include "cli/program/interrupt.h"
#include <algorithm>
#include <fmt/format.h>

namespace mneme::cli {

std::string describe_citations(const std::vector<Citation>& citations, bool name_files) {
  std::string out;
  for (std::size_t i = 0; i < citations.size(); ++i) {
    const auto& citation = citations[i];
    out += fmt::format("{} {}{}:{} {}\n", bold(fmt::format("[{}]", i + 1)),
                       name_files ? one_line(citation.file) + " " : "", one_line(citation.source),
                       citation.line, faint(fmt::format("\"{}\"", one_line(citation.excerpt))));
  }
  return out;
}

Json citations_json(const std::vector<Citation>& citations) {
  auto out = Json::array();
  for (const auto& citation : citations) {
    out.push_back({{"source", citation.source},
                   {"start", citation.start},
                   {"end", citation.end},
                   {"line", citation.line},
                   {"excerpt", citation.excerpt},
                   {"score", citation.score},
                   {"holds_answer", citation.holds_answer},
                   {"file", citation.file}});
  }
  return out;
}

std::int64_t line_of(const MemoryFile& file, std::int64_t document, std::int64_t byte) {
  const auto before = file.document_text(document, 0, byte);
  return 1 + std::count(before.begin(), before.end(), '\n');
}

std::function<bool(std::string_view)> stream_to_output() {
  return [](std::string_view piece) {
    if (!piece.empty()) {
      write(output_is_terminal() ? printable(piece) : std::string(piece));
      flush();
    }
    return !interrupted();
  };
}

}  // namespace mneme::cli
