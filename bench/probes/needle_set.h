// Needle sets: texts with a fact in them, what is asked about it and what may be answered, as tokens, for suites that read
// them in ways of their own.
#pragma once

#include "mneme/core/state.h"
#include "mneme/models/language_model.h"
#include "mneme/probes/calibration.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace mneme::bench {

struct NeedleText {
  std::vector<std::int32_t> context, question;
  std::vector<std::vector<std::int32_t>> candidates;  ///< the first is the right one

  /// Context and question.
  [[nodiscard]] std::vector<std::int32_t> prompt() const;
};

/// `samples` texts of a recall task of about `tokens` tokens, the fact at five depths by turns; the same seed gives the
/// same ones. Throws Error(usage) as the task does.
std::vector<NeedleText> needle_texts(const LanguageModel& model, const std::filesystem::path& data,
                                     std::string_view task, std::int64_t tokens,
                                     std::int64_t samples, std::uint64_t seed);

/// Whether the right candidate is more probable than every other, behind a state of one row whose last token gave
/// `logits` [1,V].
bool ranked_right(const LanguageModel& model, const State& state, const at::Tensor& logits,
                  const NeedleText& text);

/// The same behind a prompt that is read at once, and the seconds that reading took.
struct RankedPrompt {
  bool right = false;
  double seconds = 0;
};
RankedPrompt ranked_behind(const LanguageModel& model, std::span<const std::int32_t> prompt,
                           const NeedleText& text);

/// Running text to hide the needles of calibrations in, of other books than needle_texts draws from.
CalibrationText filler_text(const LanguageModel& model, const std::filesystem::path& data,
                            std::uint64_t seed);

}  // namespace mneme::bench
