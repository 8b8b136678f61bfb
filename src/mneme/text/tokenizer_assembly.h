// Assembly: a Tokenizer made of added tokens, normalizer, pre-tokenizer and vocabulary model, as
// Hugging Face tokenizers are described. The readers of the file formats fill in the parts.
#pragma once

#include "mneme/text/added_tokens.h"
#include "mneme/text/normalizer.h"
#include "mneme/text/pre_tokenizer.h"
#include "mneme/text/subword_model.h"
#include "mneme/text/tokenizer.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::text {

struct TokenizerParts {
  std::unique_ptr<SubwordModel> model;
  std::unique_ptr<Normalizer> normalizer;  ///< may be null
  PreTokenizer pre_tokenizer;
  std::vector<AddedToken> added;
  std::vector<std::int32_t> prefix, suffix;  ///< what `add_special` puts around a text
  std::optional<std::int32_t> bos, eos;
  std::vector<std::int32_t>
      more_ends;  ///< ids beside EOS that end a generation, as the file names them
};

/// More ids than any vocabulary has; a file that names a larger one is broken.
inline constexpr std::int64_t kMaxVocabulary = std::int64_t{1} << 24;

/// Throws `corrupt` if an id lies outside the vocabulary.
std::unique_ptr<Tokenizer> assemble(TokenizerParts parts);

}  // namespace mneme::text
