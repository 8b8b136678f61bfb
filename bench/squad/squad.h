// SQuAD: the question answering data set, and how its authors compare answers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::bench {

struct SquadQuestion {
  std::string id, text;
  std::size_t paragraph = 0;         ///< of its article, from 0
  std::vector<std::string> answers;  ///< of several annotators, repetitions included
  bool impossible = false;           ///< v2: its paragraph does not answer it
};

struct SquadArticle {
  std::string title;
  std::vector<std::string> paragraphs;
  std::vector<SquadQuestion> questions;
};

/// The articles of a file in the official JSON layout, packed with gzip or not. Throws Error: `not_found`, `io`,
/// `corrupt`.
std::vector<SquadArticle> load_squad(const std::filesystem::path& path);

/// The content of a file that is packed with gzip, or of one that is not. Throws as load_squad.
std::string read_gzip(const std::filesystem::path& path);

/// An answer as the official evaluation compares it: lower case, without ASCII punctuation and articles, words parted
/// by single spaces.
std::string normalised(std::string_view answer);

/// 1 if the normalised answer equals one of `golds`, else 0.
double exact_match(std::string_view answer, std::span<const std::string> golds);
/// Harmonic mean of word precision and recall, the largest over `golds`.
double word_f1(std::string_view answer, std::span<const std::string> golds);
/// Whether the words of `part` stand in `text` one after another, both normalised; false for a part without words.
bool holds_words(std::string_view text, std::string_view part);

}  // namespace mneme::bench
