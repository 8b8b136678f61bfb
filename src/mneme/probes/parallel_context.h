// Parallel contexts: windows of a text that were encoded apart, read by a query as if they stood side by side.
//
//   window w    its tokens' keys and values behind the prefix alone, from the position behind it on
//   query t     behind the longest window, sees prefix, windows and the query up to itself:
//               a_tj = softmax_j(q_t'k_j / sqrt(d))
//   entropy     H_t = -sum_j a_tj ln a_tj = lse_t - q_t'(sum_j a_tj k_j) / sqrt(d): keys attended to as values
//   selection   g_w = sum over heads and query tokens of the 5 largest a_tj with j in w, in each layer; the windows with the
//               largest g_w stay, the others are masked before the softmax, which renormalises the weights
//
// Without a prefix every window has a sink of its own, which flattens what the query sees and raises its entropy. A shared
// prefix (even a newline) is the one sink of all windows.
//
// cost      windows: one pass each, once for any number of queries; a query: a pass, and attention a second time
// needs     softmax attention, heads of a width that kernels::attend takes
// source    Zhang et al. 2024, "Attention Entropy is a Key Factor: An Analysis of Parallel Context Encoding with
//           Full-attention-based Pre-trained Language Models", arXiv:2412.16545
// departs   group scores are added up over the heads and tokens of each layer; neither over layers, which would take two
//           passes, nor kept apart by head or token
#pragma once

#include "mneme/core/state.h"
#include "mneme/mixers/kv_store.h"
#include "mneme/models/language_model.h"
#include "mneme/probes/attention.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

namespace mneme {

/// Keys and values of one window in all layers, without those of the prefix.
struct EncodedWindow {
  std::int64_t tokens = 0;
  std::vector<KvSlice> layers;
};

/// What a query made of windows.
struct ParallelReading {
  State
      state;  ///< one row: prefix, the windows that each layer chose, the query; goes on as any other
  at::Tensor logits;   ///< [1,V] of the query's last token, or [1,T,V] of all
  at::Tensor entropy;  ///< [L,Hq,T] f32, nats, over what each query token sees
  std::vector<std::vector<std::int64_t>> chosen;  ///< [L] windows, ascending
};

/// Entropy [Hq,T] f32 in nats of the attention of queries [Hq,T,d] at positions [T] over keys [H,N,d] at positions [N],
/// causal, both turned; by one pass of the fused kernel. 0 where a query sees nothing.
at::Tensor attention_entropy(const at::Tensor& queries, const at::Tensor& query_positions,
                             const at::Tensor& keys, const at::Tensor& key_positions);

/// The K best groups, ascending, by the sum over the first two dimensions of weights [Hq,T,N] of the `most` largest
/// weights in each group of so many neighbouring entries from `first` on; of equal ones the first.
std::vector<std::int64_t> select_groups(const at::Tensor& weights, std::int64_t first,
                                        std::span<const std::int64_t> sizes, std::int64_t K,
                                        std::int64_t most = 5);

/// n tokens in P runs of like length, the longer ones first. Throws Error(invalid) for fewer tokens than runs.
std::vector<std::vector<std::int32_t>> cut_into_windows(std::span<const std::int32_t> ids,
                                                        std::int64_t P);

class ParallelContext {
 public:
  /// What all windows are encoded behind and every query sees once; may be empty: then windows begin with what should be
  /// their sink. `model` must outlive this. Throws Error(unsupported) for a model without softmax attention.
  ParallelContext(const LanguageModel& model, std::span<const std::int32_t> prefix);

  [[nodiscard]] std::int64_t prefix_tokens() const { return prefix_.positions.at(0); }

  /// Each window behind the prefix alone; windows run as rows of passes. Throws Error(invalid) for one of no tokens,
  /// Error(full) past the model's context.
  [[nodiscard]] std::vector<EncodedWindow> encode(
      std::span<const std::vector<std::int32_t>> windows) const;

  /// Reads a query behind windows, in each layer the `select` best of them (0: all). The windows stay as they are. Throws
  /// Error(invalid) for an empty query, Error(full) past the model's context.
  [[nodiscard]] ParallelReading read(std::span<const EncodedWindow> windows,
                                     std::span<const std::int32_t> query, std::int64_t select = 0,
                                     LogitsAt at = LogitsAt::last) const;

 private:
  const LanguageModel& model_;
  AttentionShape shape_;
  State prefix_;
  std::vector<at::Tensor> prefix_keys_;  // [L] of [H,n,d], turned
};

}  // namespace mneme
