// The fixed lists of questions that `mneme bench answers` asks, and which articles they are asked of.
#pragma once

#include "mneme/tasks/squad.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme::bench {

/// A question on one of the articles.
struct ArticleQuestion {
  std::string id, text;
  std::vector<std::string> answers;
  std::size_t article = 0, paragraph = 0;  ///< into QuestionSet::articles, and into its paragraphs
};

using tasks::ArticleText;

/// Everything that one split asks. Tuning uses the first 16 articles of the file only; what `final` asks, and asks in
/// vain, is on the other articles. `held-back` is the four of the first 16 that readers are not trained on: it sets what
/// a reader's answers are chosen and refused by.
struct QuestionSet {
  std::string split;
  std::vector<ArticleText> articles;  ///< all of the file, in its order
  std::vector<std::size_t> asked;     ///< articles that the questions are on
  std::vector<std::size_t> small;     ///< articles of the small memory: these, or some more
  std::vector<std::size_t> all;       ///< articles of the large memory that recall is measured in
  std::vector<std::size_t>
      without_strangers;  ///< articles of the large memory that refusal is measured in
  std::vector<ArticleQuestion> questions;  ///< the fixed list
  std::vector<ArticleQuestion> others;     ///< all other questions on the same articles
  std::vector<std::string> strangers;      ///< on articles that are in neither memory but `all`
  /// final: on the articles held back from training; the reader has met the other strangers' articles, though with
  /// questions that were to be answered.
  std::vector<std::string> unseen_strangers;
  std::vector<std::string>
      more_strangers;  ///< tuning: the same for a memory of all tuning articles
  std::vector<std::string>
      unanswerable;  ///< of SQuAD v2: on the asked articles, whose paragraphs do not answer them
};

/// Chooses `count` questions of the split ("tuning", "held-back" or "final"): the order is that of the SHA-256 of the questions' ids,
/// so that a shorter list begins a longer one. Throws Error as load_squad, and `not_found` if articles are missing.
QuestionSet choose_questions(const std::filesystem::path& data, const std::string& split,
                             std::int64_t count);

/// Whether the bytes [begin, end) of an article are the gold passage of a question: they overlap its paragraph, and
/// where the paragraph is cut into several passages they hold a gold answer.
bool is_gold(const QuestionSet& set, const ArticleQuestion& question, std::size_t article,
             std::int64_t begin, std::int64_t end);

/// Whether one of the gold answers stands in a text: as it is and not inside a word, or its normalised words do.
bool holds_gold_answer(std::string_view text, const ArticleQuestion& question);

}  // namespace mneme::bench
