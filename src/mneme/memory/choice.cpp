#include "mneme/memory/choice.h"

#include "mneme/core/error.h"

#include <limits>

namespace mneme::memory {

std::size_t choose_answer(std::span<const std::string> answers,
                          std::span<const double> mean_log_probabilities,
                          std::span<const double> scores, double score_weight) {
  MNEME_ASSERT(!answers.empty() && answers.size() == mean_log_probabilities.size() &&
               answers.size() == scores.size());
  std::size_t best = 0;
  double largest = -std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const double value = mean_log_probabilities[i] + score_weight * scores[i];
    if (!answers[i].empty() && value > largest) {
      largest = value;
      best = i;
    }
  }
  return best;
}

}  // namespace mneme::memory
