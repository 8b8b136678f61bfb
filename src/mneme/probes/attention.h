// Looking at softmax attention from outside: the queries and keys of every layer, as a model computes them.
#pragma once

#include "mneme/layers/rope.h"
#include "mneme/models/language_model.h"
#include "mneme/probes/calibration.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace mneme {

/// The attention of a decoder, the same in every layer.
struct AttentionShape {
  std::int64_t layers = 0, heads = 0, kv_heads = 0, width = 0;
  std::shared_ptr<const Rope> rope;  ///< null: no rotary positions
};

/// As the model keeps its keys. Throws Error(unsupported) for a model without softmax attention.
AttentionShape attention_of(const LanguageModel& model);

/// Is shown queries [Hq,T,d] and keys [H,T,d] of a layer, not turned to their positions; `first` is that of the first token.
using SeeAttention = std::function<void(std::int64_t layer, std::int64_t first,
                                        const at::Tensor& queries, const at::Tensor& keys)>;

/// Reads the ids as one text from position 0 on, in pieces of at most `piece` tokens, and shows every layer of each piece.
/// `before(n)` is called before each piece of n tokens.
void watch_attention(const LanguageModel& model, const std::vector<std::int32_t>& ids,
                     std::int64_t piece, const std::function<void(std::int64_t n)>& before,
                     const SeeAttention& see);

/// Vectors [H,T,d] turned to positions [T]; as they are without rotary positions.
at::Tensor turned(const AttentionShape& shape, const at::Tensor& vectors,
                  const at::Tensor& positions);

/// Logits of attention [Hq,n,T]: queries [Hq,n,d] by keys [H,T,d], both turned, of tokens at `at` [n] among T; what is
/// behind its token is -infinity. Head h looks at KV head h / (Hq/H).
at::Tensor attention_logits(const at::Tensor& queries, const at::Tensor& keys,
                            const at::Tensor& at);

/// The ids of a text's beginning, at most `most` and what the model has room for. Throws Error(invalid) where there are
/// fewer than `least`.
std::vector<std::int32_t> beginning(const LanguageModel& model, const CalibrationText& text,
                                    std::int64_t least, std::int64_t most);

/// What a text came to.
struct TextSeen {
  std::int64_t tokens = 0;
  std::int64_t positions = 0;  ///< all positions are below this
};

/// Reads the beginning of a text, at most `tokens`, with a progress line for `what`, and shows every layer of each piece
/// with the positions [T] to turn its queries and keys to: a shorter text than `positions` is spread evenly over them.
TextSeen watch_text(
    const LanguageModel& model, const CalibrationText& text, std::string what, std::int64_t tokens,
    std::int64_t positions, const std::function<void()>& between,
    const std::function<void(std::int64_t layer, const at::Tensor& positions,
                             const at::Tensor& queries, const at::Tensor& keys)>& see);

/// The numbers of a tensor [L] as figures a layer.
std::vector<double> per_layer(const at::Tensor& figures);
/// The middle one of all numbers of a tensor, or the mean of the two.
double median_of(const at::Tensor& numbers);

}  // namespace mneme
