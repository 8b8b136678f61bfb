// Texts: pieces of books to measure memories on, or made up ones where there are no books.
#pragma once

#include "mneme/text/tokenizer.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::bench {

/// A piece of text as tokens.
struct TextSample {
  std::string source;  ///< the book; "made up" where it is generated
  std::vector<std::int32_t> ids;
};

/// `samples` pieces of `tokens` tokens each. They are drawn from the books of a split ("test", "dev", "train", by author)
/// in `data`/books in turns, every book cut into as many stretches as pieces are taken from it; without that folder they
/// are generated. The same seed gives the same pieces. Throws Error(usage) where the books are too short.
std::vector<TextSample> sample_texts(const std::filesystem::path& data, std::string_view split,
                                     const Tokenizer& tokenizer, std::int64_t tokens,
                                     std::int64_t samples, std::uint64_t seed);

}  // namespace mneme::bench
