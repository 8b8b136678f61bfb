// StreamingDecoder: tokens one by one into text that can be shown at once.
#pragma once

#include "mneme/text/tokenizer.h"

#include <cstdint>
#include <string>

namespace mneme {

/// Text of tokens as they come. A character whose bytes are spread over tokens is held back until
/// it is whole, so every piece given out is valid UTF-8. Bytes that no further byte can complete
/// become U+FFFD. All pieces together are `decode` of all ids, with what is not UTF-8 replaced.
class StreamingDecoder {
 public:
  /// The tokenizer must live as long as this.
  explicit StreamingDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  /// Takes one token; gives the text that is complete now, perhaps empty. Throws `invalid` on an
  /// unknown id.
  std::string push(std::int32_t id);
  /// Gives what was held back, as U+FFFD, and begins a new text.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  bool first_ = true;
  std::string held_;  // the start of one character, at most 3 bytes
};

}  // namespace mneme
