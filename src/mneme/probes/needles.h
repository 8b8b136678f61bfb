// Needles: a sentence that a text has nothing to do with, a question about it, and the answer as it stands in it, so that
// it can be seen which heads look at the answer while it is written.
#pragma once

#include "mneme/models/language_model.h"
#include "mneme/probes/attention.h"
#include "mneme/probes/calibration.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme {

/// What is hidden in a text.
struct NeedleFact {
  std::string before, answer, behind;  ///< " The keeper of", " seven copper lanterns", "."
  std::string question;                ///< up to where the answer begins
};

/// Draws from one of two sets that share neither sentences nor words of answers; equal (set, index) give equal facts.
NeedleFact draw_needle(int set, std::int64_t index);

/// One text with a needle in it, as the model reads it: filler, needle, filler, question, answer.
struct NeedlePrompt {
  std::vector<std::int32_t> ids;  ///< without the answer's last token, which nothing is asked of
  std::int64_t needle = 0, needle_tokens = 0;  ///< the sentence
  std::int64_t answer = 0, answer_tokens = 0;  ///< the answer in it
  std::int64_t asked =
      0;  ///< the token that the answer's first follows; so many of `ids` are read before it is written
};

/// About `tokens` tokens, with the needle behind the end of a sentence of the filler that is nearest behind depth (0 the
/// start, 1 the end); `from` says where in the filler's tokens the text begins. Answer and needle are cut into tokens so that
/// the answer's are the same at both places. Throws Error(invalid) where needle and question alone are longer.
NeedlePrompt needle_prompt(const LanguageModel& model, std::span<const std::int32_t> filler,
                           const NeedleFact& fact, std::int64_t from, std::int64_t tokens,
                           double depth);

/// What heads copied while an answer was written, [Hq] f64 from 0 to 1.
struct Copied {
  at::Tensor tokens;  ///< share of the answer's different tokens that were copied at least once
  at::Tensor steps;   ///< share of its steps
};

/// A head copies the i-th token of the answer if the key that it looks at most, of all keys, is of a place in the needle's
/// answer where that token stands. `logits` [Hq,n,T] of the rows that the n tokens are written from, of the T keys `ids`.
Copied copied(const at::Tensor& logits, std::span<const std::int32_t> ids, std::int64_t answer,
              std::span<const std::int32_t> written);

/// How much of a row of attention falls on `n` keys from `first` on: logits [Hq,T] -> [Hq] f64.
at::Tensor evidence_share(const at::Tensor& logits, std::int64_t first, std::int64_t n);

/// Runs the model over a prompt and shows the logits [Hq,n,T] of attention, of all layers, in the n rows from `first` on.
void watch_rows(const LanguageModel& model, const AttentionShape& shape,
                const std::vector<std::int32_t>& ids, std::int64_t first, std::int64_t n,
                const std::function<void(std::int64_t layer, const at::Tensor& logits)>& see);

/// Spearman's: the correlation of the ranks of two tensors' numbers, equal ones sharing their mean rank; 0 where one is
/// constant.
double rank_correlation(const at::Tensor& a, const at::Tensor& b);

}  // namespace mneme
