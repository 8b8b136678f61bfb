// Choosing among answers that were read from spans apart.
//
//   best = argmax_i  mean log-probability of answer i (its end included) + w * retrieval score of span i
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace mneme::memory {

/// The place of the best answer; empty ones come last, and of equal ones the first is taken. The three lists are of one
/// length, which is not 0.
std::size_t choose_answer(std::span<const std::string> answers,
                          std::span<const double> mean_log_probabilities,
                          std::span<const double> scores, double score_weight);

}  // namespace mneme::memory
