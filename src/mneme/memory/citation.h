// Citation: which bytes of which source an answer was read from, made from the spans that were placed, never by the model.
#pragma once

#include "mneme/text/span.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

class MemoryFile;

struct Citation {
  std::string source;
  std::int64_t start = 0, end = 0;  ///< bytes of the source
  std::int64_t line = 0;            ///< of the start, from 1
  std::string
      excerpt;  ///< a verbatim piece of the range, with the answer's words where it holds them
  std::int64_t excerpt_line = 0;  ///< where the excerpt begins, from 1
  double score = 0;               ///< of the span in retrieval
  std::int64_t span = 0;
  std::string file;           ///< the memory file it is from, as given
  bool holds_answer = false;  ///< the excerpt's span contains the answer's words
};

namespace memory {

/// The line, from 1, that a byte of a document stands in.
std::int64_t line_of(const MemoryFile& file, std::int64_t document, std::int64_t byte);

/// A span whose state was placed before the question.
struct PlacedSpan {
  const MemoryFile* file = nullptr;
  Span span;
  std::string source;
  double score = 0;
};

struct Citations {
  std::vector<Citation> list;
  bool quotation = false;  ///< at least one of them holds the answer's words
};

/// What to cite for an answer: the placed spans that hold its words, in order, or all of them where none does. If it was
/// read from one span alone, `read_from`, that one comes first, and is all where it does not hold the answer's words.
Citations citations_of(std::span<const PlacedSpan> placed, std::string_view answer,
                       std::optional<std::size_t> read_from = {});

}  // namespace memory
}  // namespace mneme
