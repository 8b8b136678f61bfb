// Spans: the pieces of a document that are embedded, stored, found and cited.
#pragma once

#include "mneme/text/document.h"

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// A byte range of a document. Passages are read and cited; sections hold them and one another.
struct Span {
  std::int64_t id = 0;        ///< set by the memory that stores it
  std::int64_t document = 0;  ///< set by the memory that stores it
  std::int64_t begin = 0;     ///< first byte
  std::int64_t end = 0;       ///< byte behind the last; both are borders of characters
  std::int64_t parent = -1;   ///< index in the result of the innermost section around it; -1: none
  std::int64_t order = 0;     ///< place in the document, from 0, sections before what they hold
  std::int64_t tokens = 0;    ///< tokens by the counter, added up over the pieces that were counted
  std::string kind;           ///< "section" or "passage"
};

/// How long passages are.
struct SpanOptions {
  std::int64_t min_tokens = 40;  ///< shorter paragraphs are joined with a neighbour where that fits
  std::int64_t max_tokens = 250;  ///< no passage is longer
};

/// Tokens of a text. Called once a paragraph, once more a sentence where a paragraph is too long,
/// and once more for pieces of a sentence that is too long. Counts are taken to add up, so that a
/// tokenizer may make a few tokens more or less of a whole passage than its `tokens` say.
using CountTokens = std::function<std::int64_t(std::string_view)>;

/// Cuts a document into spans, in order, sections before what they hold. The passages together
/// cover all text that is not white space (nor a leading byte order mark), without overlap and
/// without surrounding white space (in code the indentation of the first line stays), and none is
/// longer than max_tokens unless the counter gives a single piece of max(4, max_tokens) bytes more
/// tokens than that.
///
/// In text, a paragraph of min to max tokens is one passage. Blank lines separate paragraphs; where
/// lines are long (more than 160 characters for most of the text between two blank lines) and end
/// as sentences do, every line is one. A longer paragraph is cut at sentences into nearly equal
/// parts, rather where a line begins; a sentence at line ends, then words, then characters. Shorter
/// paragraphs are joined with each other, else with a neighbour; two paragraphs of at least min
/// tokens are joined only in a text that consists mostly of shorter ones. Headings (Markdown's `#`,
/// underlined titles) open sections that no passage crosses, except that a heading directly above a
/// deeper one goes with it. A line that looks like a heading, or ends in a colon, goes with what
/// follows. Fenced code is kept whole if it fits.
///
/// In code, blank lines separate pieces that are joined to about half of max_tokens, cut rather
/// where a line without indentation begins.
///
/// Linear in the text. Throws `invalid` unless 1 <= min_tokens <= max_tokens and `unsupported` for
/// images and clips. `text` must be valid UTF-8.
std::vector<Span> cut_spans(std::string_view text, Media media, const CountTokens& count,
                            const SpanOptions& options = {});

}  // namespace mneme
