// Reading data: texts and questions on them, in one form whatever data set they are from, and in
// splits that share nothing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme::tasks {

/// A text that questions are asked of, cut into passages as a memory cuts a document.
struct ReadingText {
  /// Texts of one source are taken for each other: an article, or a collection of paragraphs.
  std::string source;
  std::string text;
  /// Byte ranges that questions are on, without surrounding white space.
  std::vector<std::pair<std::int64_t, std::int64_t>> paragraphs;
};

/// A question on a paragraph of a text.
struct ReadingQuestion {
  std::string id, text;
  std::size_t of_text = 0, paragraph = 0;  ///< into ReadingData::texts, and into its paragraphs
  std::vector<std::string> answers;        ///< empty: the paragraph does not answer it
};

/// What is read and what is asked.
struct ReadingData {
  std::vector<ReadingText> texts;
  std::vector<ReadingQuestion> questions;
};

/// Which of the data: to train on, to tune and validate on, or for final figures only.
enum class Split { train, tuning, test };

/// The questions of SQuAD v1.1's development set in `folder` by its articles, split by title; with
/// those of v2.0 that their paragraphs do not answer, where that file is there and their articles
/// are in v1.1. Throws Error(not_found), and as load_squad.
ReadingData squad_reading(const std::filesystem::path& folder, Split split);

/// Real queries on paragraphs of an encyclopedia (the development set of QED, a part of Natural
/// Questions), joined back to plain text; split by lines. A paragraph that a later split asks about,
/// or that is of an article SQuAD is tested on, is left out. Throws Error(not_found), and
/// Error(corrupt) with file and line.
ReadingData nq_qed_reading(const std::filesystem::path& folder, Split split);

/// A user's own questions: a JSON object a line, {"text" or "passage", "question", "answers": []},
/// without answers where the text has none, and optionally "source". By the digest of its text a
/// passage is for training (90 %) or for tuning; there is no test split. Questions none of whose
/// answers stands in the text are left out, with a warning. Throws Error(not_found), and
/// Error(invalid) with file and line.
ReadingData own_reading(const std::filesystem::path& file, Split split);

/// The data sets that `names` lists, parted by '+': "squad", "nq-qed" (in folders of these names
/// under `folder`), or files that end in ".jsonl" (as given, else under `folder`). Throws
/// Error(usage) for an unknown one, and as the functions above.
ReadingData reading_data(std::string_view names, const std::filesystem::path& folder, Split split);

/// Tokens parted by spaces, as treebanks write them, as plain text; and for every code point of
/// `tokens` and its end the byte where it stands in the result.
struct PlainText {
  std::string text;
  std::vector<std::size_t> bytes;
};
PlainText plain_text(std::string_view tokens);

}  // namespace mneme::tasks
