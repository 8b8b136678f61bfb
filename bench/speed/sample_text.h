// Text to measure speed with where no file is given: English words in sentences and paragraphs of mixed length, the same
// every time.
#pragma once

#include <cstdint>
#include <string>

namespace mneme::bench {

/// Whole paragraphs of at least `bytes` bytes in all.
std::string sample_text(std::int64_t bytes, std::uint64_t seed = 1);

}  // namespace mneme::bench
