#include "mneme/memory/citation.h"

#include <algorithm>

#include "mneme/memory/memory_file.h"
#include "mneme/memory/quotation.h"
#include "mneme/text/document.h"

namespace mneme::memory {
namespace {

constexpr std::int64_t kExcerptChars = 200;

Citation cite(const PlacedSpan& placed, std::string_view answer) {
  Citation out;
  const auto& span = placed.span;
  const auto before = placed.file->document_text(span.document, 0, span.begin);
  const auto text = placed.file->span_text(span.id);
  out.source = placed.source;
  out.start = span.begin;
  out.end = span.end;
  out.line = 1 + std::count(before.begin(), before.end(), '\n');
  out.score = placed.score;
  out.span = span.id;
  out.file = placed.file->path().string();
  const auto quotation = find_quotation(text, answer);
  out.holds_answer = quotation.has_value();
  // The excerpt shows the answer's words with some text before them.
  std::int64_t from = 0;
  if (quotation && quotation->second > kExcerptChars) {
    from = std::max<std::int64_t>(0, quotation->first - kExcerptChars / 3);
    while (from > 0 && text[static_cast<std::size_t>(from - 1)] != ' ' && text[static_cast<std::size_t>(from - 1)] != '\n') --from;
  }
  out.excerpt = excerpt(text, from, static_cast<std::int64_t>(text.size()), kExcerptChars);
  return out;
}

}  // namespace

Citations citations_of(std::span<const PlacedSpan> placed, std::string_view answer, std::optional<std::size_t> read_from) {
  std::vector<Citation> all;
  for (const auto& span : placed) all.push_back(cite(span, answer));
  Citations out;
  if (read_from) {
    out.quotation = all[*read_from].holds_answer;
    out.list.push_back(all[*read_from]);
    for (std::size_t i = 0; out.quotation && i < all.size(); ++i) {
      if (i != *read_from && all[i].holds_answer) out.list.push_back(std::move(all[i]));
    }
    return out;
  }
  out.quotation = std::any_of(all.begin(), all.end(), [](const Citation& c) { return c.holds_answer; });
  for (auto& citation : all) {
    if (citation.holds_answer || !out.quotation) out.list.push_back(std::move(citation));
  }
  return out;
}

}  // namespace mneme::memory
