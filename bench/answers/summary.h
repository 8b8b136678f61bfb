// What the rows of `mneme bench answers` say: recall, answers, citations and refusal, with intervals and bars.
#pragma once

#include "mneme/memory/prompt.h"

#include "bench/answers/answer_rows.h"
#include "bench/answers/question_set.h"
#include "bench/suite.h"
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace mneme::bench {

/// Retrieval in one memory.
struct RecallFindings {
  std::string memory;
  std::int64_t passages = 0, tokens = 0;
  std::vector<Retrieval> questions;  ///< of the fixed list
  std::vector<Retrieval>
      others;  ///< of all other questions on the same articles, if they were asked
};

/// What is known of a question when it is to be refused or answered.
struct Evidence {
  double relevance = 0;  ///< of the best passages
  std::optional<double> confidence =
      {};  ///< of the answer read from them, where the prompt weighs it
};

/// Evidence on what belongs into one memory and on what does not.
struct RefusalFindings {
  std::string memory;
  std::int64_t passages = 0;
  std::vector<Evidence> answerable, strangers, unanswerable;
  std::string strangers_are;
};

/// Everything that was measured.
struct Findings {
  const QuestionSet& set;
  const AnswerRows& rows;
  std::vector<Variant> variants;  ///< those that were answered
  RecallFindings small, large;
  RefusalFindings small_refusal, large_refusal;
  RefusalFindings
      unseen_refusal;  ///< the small memory, strangers of articles that no reader was trained on
  Prompt prompt;       ///< how the questions were asked
  std::optional<std::map<std::string, std::string>>
      peer;  ///< another engine's answers to the gold paragraphs, by question
};

/// Figures, text and verdict.
SuiteReport summarize(const Findings& findings);

}  // namespace mneme::bench
