#include "cli/program/citations.h"

#include "cli/program/interrupt.h"
#include <fmt/format.h>

namespace mneme::cli {

std::string describe_citations(const std::vector<Citation>& citations, bool name_files) {
  std::string out;
  for (std::size_t i = 0; i < citations.size(); ++i) {
    const auto& citation = citations[i];
    out += fmt::format("{} {}{}:{} {}\n", bold(fmt::format("[{}]", i + 1)),
                       name_files ? one_line(citation.file) + " " : "", one_line(citation.source),
                       citation.excerpt_line,
                       faint(fmt::format("\"{}\"", one_line(citation.excerpt))));
  }
  return out;
}

std::string not_a_quotation() {
  return faint("not a quotation: these words stand in no cited span");
}

Json citations_json(const std::vector<Citation>& citations) {
  auto out = Json::array();
  for (const auto& citation : citations) {
    out.push_back({{"source", citation.source},
                   {"start", citation.start},
                   {"end", citation.end},
                   {"line", citation.line},
                   {"excerpt", citation.excerpt},
                   {"excerpt_line", citation.excerpt_line},
                   {"score", citation.score},
                   {"holds_answer", citation.holds_answer},
                   {"file", citation.file}});
  }
  return out;
}

std::string cut_at(std::int64_t max_tokens) {
  return fmt::format("cut at {}: --max-tokens gives more room", counted(max_tokens, "token"));
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
