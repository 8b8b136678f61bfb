#include "mneme/memory/choice.h"

#include "mneme/core/error.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mneme::memory {
namespace {

// A refusal that is as good as certain still leaves answers comparable.
constexpr double kLeast = 1e-6;

}  // namespace

Choice choose_answer(std::span<const ScoredAnswer> answers, double relevance,
                     const Prompt& prompt) {
  MNEME_ASSERT(!answers.empty());
  Choice out;
  double largest = -std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const auto& read = *answers[i].answer;
    const double value = read.mean_log_probability + prompt.score_weight * answers[i].score +
                         prompt.refusal_weight * std::log(std::max(kLeast, 1 - read.refused));
    if (!read.text.empty() && value > largest) {
      largest = value;
      out.best = i;
    }
  }
  if (std::isfinite(largest)) out.confidence = largest + prompt.relevance_weight * relevance;
  out.refused = !prompt.refusal.empty() && out.confidence < prompt.refused_below;
  return out;
}

}  // namespace mneme::memory
