// Generated prompts whose right answer is known: paraphrases of 300 intents, half of them with a word that flips it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mneme::bench {

struct CachePrompt {
  std::string text;
  std::string
      answer;  ///< the intent and, of a tight one, the word: equal for prompts with one right answer
  bool tight = false;
};

/// `n` prompts, each of an intent drawn uniformly, in words drawn uniformly.
std::vector<CachePrompt> cache_prompts(std::int64_t n, std::uint64_t seed);

}  // namespace mneme::bench
