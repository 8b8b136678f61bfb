// SQuAD: the question answering data set, and how its authors compare answers.
#pragma once

#include "mneme/text/document.h"

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme::tasks {

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

/// An article as a person would read it: its paragraphs parted by blank lines.
struct ArticleText {
  std::string title, text;
  std::vector<std::pair<std::int64_t, std::int64_t>>
      paragraphs;  ///< byte ranges without surrounding white space

  [[nodiscard]] Document document() const { return document_from_text(title, text); }
};

/// The articles of the development set that final figures are measured on: nothing is ever trained
/// or tuned on them, nor on other data's questions about them.
std::span<const std::string_view> squad_test_titles() noexcept;
/// Those that training is validated on, and whatever follows from it is tuned on.
std::span<const std::string_view> squad_tuning_titles() noexcept;

/// The articles of a file in the official JSON layout, packed with gzip or not. Throws Error:
/// `not_found`, `io`, `corrupt`.
std::vector<SquadArticle> load_squad(const std::filesystem::path& path);

/// The article's text; its paragraphs are trimmed, and it ends in a line feed.
ArticleText article_text(const SquadArticle& article);

/// The content of a file that is packed with gzip, or of one that is not. Throws as load_squad.
std::string read_gzip(const std::filesystem::path& path);

/// An answer as the official evaluation compares it: lower case, without ASCII punctuation and
/// articles, words parted by single spaces.
std::string normalised(std::string_view answer);

/// 1 if the normalised answer equals one of `golds`, else 0.
double exact_match(std::string_view answer, std::span<const std::string> golds);
/// Harmonic mean of word precision and recall, the largest over `golds`.
double word_f1(std::string_view answer, std::span<const std::string> golds);
/// Whether the words of `part` stand in `text` one after another, both normalised; false for a part
/// without words.
bool holds_words(std::string_view text, std::string_view part);
/// Whether an answer stands in a text: as it is and not inside a word ("1679" does in "1641-1679"),
/// or its normalised words do.
bool holds_answer(std::string_view text, std::string_view answer);

/// A text without the white space around it.
std::string trimmed(std::string_view text);

}  // namespace mneme::tasks
