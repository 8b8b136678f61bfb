#include "bench/speed/sample_text.h"

#include "mneme/core/generator.h"

#include <array>
#include <string_view>

namespace mneme::bench {
namespace {

constexpr std::array<std::string_view, 96> kWords = {
    "the",     "of",      "and",     "a",        "to",       "in",       "was",      "that",
    "he",      "it",      "his",     "with",     "had",      "for",      "on",       "at",
    "by",      "from",    "which",   "but",      "not",      "her",      "were",     "be",
    "she",     "they",    "an",      "this",     "when",     "would",    "all",      "there",
    "water",   "morning", "harbour", "captain",  "letter",   "garden",   "winter",   "village",
    "river",   "window",  "evening", "stranger", "history",  "number",   "machine",  "question",
    "answer",  "memory",  "island",  "mountain", "paper",    "church",   "station",  "railway",
    "teacher", "doctor",  "council", "province", "company",  "market",   "harvest",  "journey",
    "old",     "young",   "small",   "great",    "dark",     "quiet",    "narrow",   "distant",
    "early",   "careful", "foreign", "wooden",   "common",   "public",   "several",  "broken",
    "came",    "went",    "saw",     "knew",     "thought",  "found",    "carried",  "built",
    "wrote",   "stood",   "turned",  "opened",   "believed", "received", "remained", "explained"};

}  // namespace

std::string sample_text(std::int64_t bytes, std::uint64_t seed) {
  Generator generator(seed);
  const auto between = [&](std::int64_t least, std::int64_t most) {
    return least +
           static_cast<std::int64_t>(generator.uniform() * static_cast<double>(most - least + 1));
  };
  std::string out;
  while (static_cast<std::int64_t>(out.size()) < bytes) {
    for (auto sentences = between(1, 8); sentences > 0; --sentences) {
      const auto start = out.size();
      for (auto words = between(4, 28); words > 0; --words) {
        // Short words are the frequent ones, as in any text.
        const auto among = generator.uniform() < 0.5 ? 32.0 : static_cast<double>(kWords.size());
        out += kWords.at(static_cast<std::size_t>(generator.uniform() * among));
        out += words > 1 ? " " : ". ";
      }
      out[start] = static_cast<char>(out[start] - 'a' + 'A');
    }
    out.back() = '\n';
    out += '\n';
  }
  return out;
}

}  // namespace mneme::bench
