// Haystack: sentences that fill a text up to a number of tokens, with facts put between them.
#pragma once

#include "mneme/core/generator.h"
#include "mneme/text/tokenizer.h"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme::tasks {

/// A whole number in [0, n); n at least 1.
std::size_t below(Generator& generator, std::size_t n);

/// `count` different numbers of [0, n) in random order; count at most n.
std::vector<std::size_t> distinct(Generator& generator, std::size_t n, std::size_t count);

template <class T>
void reorder(std::vector<T>& items, Generator& generator) {
  for (auto i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(generator, i)]);
}

/// One of the items; there must be one.
template <class Items>
const auto& pick(const Items& items, Generator& generator) {
  return items[below(generator, items.size())];
}

/// Gives the next piece of filler, or nothing where there is none left.
using Filler = std::function<std::optional<std::string>()>;

/// Prose as sentences in reading order.
class Prose {
 public:
  /// The sentences of the novels in `data`/books that are held back for tests (Trollope_*.txt.gz);
  /// where there are none, plain generated ones, the same every time. Throws Error(corrupt) for a
  /// damaged file.
  explicit Prose(const std::filesystem::path& data);

  /// Each on one line, without white space at its ends.
  [[nodiscard]] std::span<const std::string> sentences() const noexcept { return sentences_; }

  /// The sentences that `wanted` lets through, from a random one on, over and over; nothing where it
  /// refuses all. Outlived by this.
  [[nodiscard]] Filler filler(Generator& generator,
                              std::function<bool(std::string_view)> wanted) const;

 private:
  std::vector<std::string> sentences_;
};

/// What stands around filler and facts.
struct Frame {
  std::string task;      ///< its name, for the error
  std::string before;    ///< the context begins with it
  std::string between;   ///< parts two sentences
  std::string after;     ///< the context ends with it
  std::string question;  ///< counted with the context
  /// What stands before the i-th sentence, from 0, facts included ("Document 1:\n"); may be null.
  std::function<std::string(std::size_t)> title = nullptr;
};

/// A sentence that has its place: at the border of the filler nearest to `depth` of its tokens, from 0
/// (before all of it) to 1. Facts at one border keep their order.
struct Fact {
  std::string text;
  double depth = 0;
};

/// A text, and where in it the facts stand, in the order they were given: byte ranges [begin, end).
struct Haystack {
  std::string context;
  std::vector<std::pair<std::int64_t, std::int64_t>> facts;
};

/// A text whose tokens and the question's are as many as fit into `tokens`: pieces of filler in their
/// order, at the end the next ones that still fit. Throws Error(usage) where the facts, the frame
/// and the question alone have more.
Haystack fill(const Frame& frame, std::span<const Fact> facts, const Filler& filler,
              std::int64_t tokens, const Tokenizer& tokenizer);

/// The Error(usage) for a sample that needs `needed` tokens.
[[noreturn]] void refuse_tokens(std::string_view task, std::int64_t tokens, std::int64_t needed);

/// Whether a text holds another, whatever the case of its letters.
bool holds(std::string_view text, std::string_view part);

/// A function that lets through what holds none of `words`, whatever their case.
std::function<bool(std::string_view)> without(std::vector<std::string> words);

}  // namespace mneme::tasks
