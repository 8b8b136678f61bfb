#include "mneme/memory/citation.h"

#include "mneme/memory/memory_file.h"
#include "mneme/memory/quotation.h"
#include "mneme/text/document.h"

#include <algorithm>
#include <cctype>

namespace mneme::memory {
namespace {

constexpr std::int64_t kExcerptChars = 200;

bool tells(std::string_view line) {
  return std::any_of(line.begin(), line.end(),
                     [](unsigned char c) { return std::isalnum(c) != 0 || c >= 0x80; });
}

/// Where the excerpt of a text begins: at its first line with words in it, or, where the answer would be out of sight
/// then, at the sentence or the word some way before it.
std::int64_t excerpt_begin(std::string_view text,
                           const std::optional<std::pair<std::int64_t, std::int64_t>>& quotation) {
  std::size_t from = 0;
  while (from < text.size()) {
    const auto end = std::min(text.find('\n', from), text.size());
    if (tells(text.substr(from, end - from))) break;
    from = end + 1;
  }
  if (from >= text.size()) from = 0;
  if (!quotation || quotation->second <= static_cast<std::int64_t>(from) + kExcerptChars) {
    return std::min<std::int64_t>(static_cast<std::int64_t>(from),
                                  quotation ? quotation->first : static_cast<std::int64_t>(from));
  }
  const auto first = static_cast<std::size_t>(quotation->first);
  const auto earliest =
      first - std::min<std::size_t>(first, static_cast<std::size_t>(kExcerptChars / 3));
  auto begin = first;
  for (auto at = first; at > earliest; --at) {
    if (text[at - 1] == ' ' || text[at - 1] == '\n') begin = at;
    const bool sentence = at >= 2 && text[at - 1] == ' ' &&
                          (text[at - 2] == '.' || text[at - 2] == '!' || text[at - 2] == '?');
    const bool paragraph = at >= 2 && text[at - 1] == '\n' && text[at - 2] == '\n';
    if (sentence || paragraph) break;
  }
  return static_cast<std::int64_t>(begin);
}

Citation cite(const PlacedSpan& placed, std::string_view answer) {
  Citation out;
  const auto& span = placed.span;
  const auto text = placed.file->span_text(span.id);
  out.source = placed.source;
  out.start = span.begin;
  out.end = span.end;
  out.line = line_of(*placed.file, span.document, span.begin);
  out.score = placed.score;
  out.span = span.id;
  out.file = placed.file->path().string();
  const auto quotation = find_quotation(text, answer);
  out.holds_answer = quotation.has_value();
  const auto from = excerpt_begin(text, quotation);
  out.excerpt = excerpt(text, from, static_cast<std::int64_t>(text.size()), kExcerptChars);
  // excerpt() leaves out white space at its start.
  const auto shown = text.find(out.excerpt, static_cast<std::size_t>(from));
  out.excerpt_line =
      out.line +
      std::count(text.begin(),
                 text.begin() + static_cast<std::ptrdiff_t>(std::min(shown, text.size())), '\n');
  return out;
}

}  // namespace

std::int64_t line_of(const MemoryFile& file, std::int64_t document, std::int64_t byte) {
  const auto before = file.document_text(document, 0, byte);
  return 1 + std::count(before.begin(), before.end(), '\n');
}

Citations citations_of(std::span<const PlacedSpan> placed, std::string_view answer,
                       std::optional<std::size_t> read_from) {
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
  out.quotation =
      std::any_of(all.begin(), all.end(), [](const Citation& c) { return c.holds_answer; });
  for (auto& citation : all) {
    if (citation.holds_answer || !out.quotation) out.list.push_back(std::move(citation));
  }
  return out;
}

}  // namespace mneme::memory
