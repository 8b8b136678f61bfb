#include "mneme/text/streaming_decoder.h"

#include "mneme/text/unicode.h"

#include <utility>

namespace mneme {

std::string StreamingDecoder::push(std::int32_t id) {
  if (skip_special_ && tokenizer_.is_special(id)) return {};
  // WordPiece puts a blank before every word but a text's first.
  held_ += std::exchange(first_, false) ? tokenizer_.decode({&id, 1}) : tokenizer_.token_bytes(id);
  std::size_t complete = 0;
  while (complete < held_.size()) {
    const auto step = text::next_code_point(held_, complete);
    if (step.cut) break;
    complete += step.bytes;
  }
  auto shown = text::replace_invalid_utf8(std::string_view(held_).substr(0, complete));
  held_.erase(0, complete);
  return shown;
}

std::string StreamingDecoder::finish() {
  first_ = true;
  return text::replace_invalid_utf8(std::exchange(held_, {}));
}

}  // namespace mneme
