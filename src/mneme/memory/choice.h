// Choosing among answers that were read from spans apart, and refusing where none is to be trusted.
//
//   value of answer i  =  l_i + w s_i + u log(1 - r_i)
//   best               =  argmax_i value_i
//   confidence         =  value_best + v relevance
//
// l_i: mean log-probability of the answer, its end included; s_i: retrieval score of its span; r_i: the model's
// probability of refusing behind that span; relevance: of the best spans to the question. The weights w, u, v and the
// confidence below which an answer is refused are the prompt's.
#pragma once

#include "mneme/memory/prompt.h"
#include "mneme/memory/reader.h"

#include <cstddef>
#include <span>
#include <string_view>

namespace mneme::memory {

/// What stands in place of an answer that the memory does not hold.
inline constexpr std::string_view kNotFound = "not found in memory";

/// One answer and the retrieval score of what it was read from.
struct ScoredAnswer {
  const ReadAnswer* answer = nullptr;
  double score = 0;
};

struct Choice {
  std::size_t best = 0;
  double confidence = 0;  ///< 0 where the best answer is empty
  bool refused = false;   ///< the prompt has a refusal, and the confidence is below what it wants
};

/// The best of the answers, which are not none. Empty ones come last, and of equal ones the first is taken.
Choice choose_answer(std::span<const ScoredAnswer> answers, double relevance, const Prompt& prompt);

}  // namespace mneme::memory
