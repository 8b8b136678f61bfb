// Prompt: how a model is asked from memory. It is data of a memory file, frozen when the file is made: states computed
// behind one prefix are of no use behind another.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mneme {

struct Prompt {
  std::string prefix;                           ///< stands before every span, shared by all
  std::string span_before, span_after;          ///< around a span's text
  std::string question_before, question_after;  ///< around the question
  std::string answer_ends_at;                   ///< the answer is what stands before this text
  /// What a model that learned to refuse says where the passages hold no answer; empty for one that did not.
  std::string refusal;
  std::int64_t max_tokens = 24;  ///< of an answer, unless the user says otherwise
  std::int64_t spans_apart = 3;  ///< spans that are read apart, unless the user says otherwise
  double not_found_below = 0;    ///< relevance under which the memory holds no answer
  double score_weight = 0;       ///< of retrieval in the choice among answers read apart
  double refusal_weight = 0;     ///< of log P(no refusal) in that choice
  double relevance_weight = 0;   ///< of the question's relevance in the confidence; see choice.h
  double refused_below = 0;      ///< confidence under which an answer that was read is refused

  /// The few-shot prompt that was chosen for the default model on tuning articles.
  static Prompt few_shot_quotes();
  /// As stored in a memory's meta; from_json throws Error(corrupt).
  [[nodiscard]] std::string to_json() const;
  static Prompt from_json(std::string_view json);
  /// SHA-256 of everything that stands before a span.
  [[nodiscard]] std::string prefix_digest() const;
};

}  // namespace mneme
