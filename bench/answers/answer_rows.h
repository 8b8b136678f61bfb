// AnswerRows: how a list of questions is answered in each of several ways, a row a question and way, kept in a file as
// they come so that an interrupted run goes on.
#pragma once

#include "mneme/memory/reader.h"

#include "bench/answers/article_memory.h"
#include "bench/answers/question_set.h"
#include <cstdint>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::bench {

/// One way to answer.
struct Variant {
  enum class How {
    gold,          ///< the gold paragraph read behind the prefix
    joint,         ///< the spans read in one pass behind the prefix, best last
    placed,        ///< the spans' states placed one after another, best last
    apart,         ///< each span's state alone, a row each
    ask_each,      ///< `mneme ask --place each`
    ask_together,  ///< `mneme ask --place together`
  };
  std::string_view name, help;
  How how;
  std::int64_t spans;      ///< best spans that are read; 0: as many as the prompt says
  std::string_view codec;  ///< that their states went through; empty: does not apply
};

/// All of them, in the order of the report.
std::span<const Variant> variants() noexcept;

class AnswerRows {
 public:
  /// Reads the rows that `file` has; an empty name keeps none. `settings` says what the rows depend on. Throws
  /// Error(mismatch) if the file's rows were made with other settings, Error(io).
  AnswerRows(const std::string& file, nlohmann::json settings);

  [[nodiscard]] bool has(std::string_view variant, const std::string& question) const;
  [[nodiscard]] const nlohmann::json& row(std::string_view variant,
                                          const std::string& question) const;
  void add(std::string_view variant, const std::string& question, nlohmann::json row);
  /// What was added is in the file when this returns.
  void flush();

 private:
  std::ofstream out_;
  std::map<std::string, std::map<std::string, nlohmann::json>, std::less<>>
      rows_;  // by variant, then question
};

/// A row of one answer: {"answer", "f1", "em", "contains"}.
nlohmann::json scored(const std::string& answer, const ArticleQuestion& question);

/// What is known of a question that is asked with no one to say whether it has an answer: a row under `variant` and the
/// question's text with {"relevance", "confidence", "read": what every span said}.
void ask_in_doubt(std::span<const std::string> questions, std::string_view variant,
                  ArticleMemory& memory, AnswerRows& rows, const std::function<void()>& between);

/// Answers all questions of the set in each of the wanted ways that `rows` has not. `retrieved` has the spans of every
/// question in the memory. Questions of one article run together, several questions a batch; `between` is called between
/// batches.
void answer_questions(const QuestionSet& set, ArticleMemory& memory, const Reader& reader,
                      std::span<const Retrieval> retrieved, std::span<const Variant> wanted,
                      AnswerRows& rows, const std::function<void()>& between);

}  // namespace mneme::bench
