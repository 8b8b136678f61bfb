// EHPC: a prompt cut down to the tokens that a few heads of one early layer look at, before a model reads it.
//
//   heads     S [L,Hq]: how much each head looks at the evidence of a question (the calibration evaluator_heads); the layer
//             l* with the largest sum, and of it the heads with the largest scores
//   scores    A_h the weights of the last `recent` tokens over all n, in layer l*; layers behind it are not run
//             s_j = sum_h pool(mean_rows A_h)_j
//   pool      mean over the neighbours up to pool / 2 away, those at its ends counted by half where `pool` is even; beyond
//             the text's ends there is nothing to count
//   kept      the first token, the last `recent` ones, and those with the largest scores, in the text's order; the
//             tokens kept are a prompt of their own, at new positions, for this model or any other
//
// cost      l* + 1 layers over the prompt
// needs     softmax attention; the question within the last `recent` tokens
// source    Fei et al. 2025, "Efficient Prompt Compression with Evaluator Heads for Long-Context Transformer Inference",
//           arXiv:2501.12959
// departs   the first token is kept, and what heads look at it is not counted: it is where they look when they look at
//           nothing. The budget counts it and the last tokens. Even pools are centred. Tokens are kept one by one, words are
//           not kept whole
#pragma once

#include "mneme/models/language_model.h"
#include "mneme/probes/attention.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

namespace mneme {

/// Heads of one layer.
struct EvaluatorHeads {
  std::int64_t layer = 0;
  std::vector<std::int64_t> heads;  ///< ascending
};

/// The `count` best heads of the layer whose scores [L,Hq] sum to most; all of it where it has no more. Throws
/// Error(invalid) for a count below 1.
EvaluatorHeads evaluators(const at::Tensor& scores, std::int64_t count);

struct EhpcOptions {
  std::int64_t recent = 16;  ///< last tokens, which look and are kept
  std::int64_t pool = 32;    ///< neighbours that a token's score is the mean of
};

/// Means of x [..,n] over neighbours, as above; pool 1 or 0: x itself.
at::Tensor pooled(const at::Tensor& x, std::int64_t pool);

/// Places of the `budget` tokens to keep, ascending: the first, the last `recent`, then by score [n], of equal ones the
/// first. All n where the budget is no less.
std::vector<std::int64_t> kept_places(const at::Tensor& scores, std::int64_t budget,
                                      std::int64_t recent);

class PromptCompressor {
 public:
  /// `model` must outlive this. Throws Error(unsupported) for a model without softmax attention, Error(invalid) where it
  /// has no such heads.
  PromptCompressor(const LanguageModel& model, EvaluatorHeads evaluators, EhpcOptions options = {});

  /// How much each token is looked at [n] f64. Throws Error(full) past the model's context.
  [[nodiscard]] at::Tensor scores(std::span<const std::int32_t> ids) const;
  /// At most `budget` of the ids, in order. Throws Error(invalid) where the budget has no room for what is always kept.
  [[nodiscard]] std::vector<std::int32_t> compress(std::span<const std::int32_t> ids,
                                                   std::int64_t budget) const;

 private:
  const LanguageModel& model_;
  AttentionShape shape_;
  EvaluatorHeads evaluators_;
  EhpcOptions options_;
};

}  // namespace mneme
