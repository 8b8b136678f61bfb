// LayerView: what the stages of a KV plan see of one layer of one sequence. Everything is computed when it is asked for.
#pragma once

#include "mneme/kv/stage.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace mneme {

class LayerView {
 public:
  virtual ~LayerView() = default;

  std::int64_t layer = 0, layers = 1;  ///< which of how many
  std::int64_t row = 0;                ///< of the batch
  std::int64_t heads = 0, group = 0;   ///< KV heads, and query heads of each
  double scale = 1;                    ///< of the scores of attention
  Moment moment;

  [[nodiscard]] virtual HeadView head(std::int64_t head) const = 0;
  /// Keys [N,K] f32 as they are stored: turned to their positions; values [N,V] f32.
  [[nodiscard]] virtual at::Tensor keys(std::int64_t head) const = 0;
  [[nodiscard]] virtual at::Tensor values(std::int64_t head) const = 0;
  /// Keys [N,K] f32 turned back, as they were computed.
  [[nodiscard]] virtual at::Tensor unrotated_keys(std::int64_t head) const = 0;
  /// Vectors x [n,K] f32 turned to positions [n] as keys and queries are; negative positions turn back.
  [[nodiscard]] virtual at::Tensor turned(const at::Tensor& x,
                                          const std::vector<std::int64_t>& positions) const = 0;
  /// The last queries [group,w,K] f32 of the head, turned, and their positions [w]; w is at most the plan's query window.
  [[nodiscard]] virtual at::Tensor queries(std::int64_t head) const = 0;
  [[nodiscard]] virtual const std::vector<std::int64_t>& query_positions() const = 0;
  /// Weights [group,w,N] f32 of the last `queries` of them over the entries that are held now.
  [[nodiscard]] virtual at::Tensor window_weights(std::int64_t head,
                                                  std::int64_t queries) const = 0;
  /// What each entry has received from all queries since it came [group,N] f32.
  [[nodiscard]] virtual at::Tensor column_sums(std::int64_t head) const = 0;
  /// The most weight that each entry got from any query of the second pass over the prompt [N] f32; NaN: it was no part of
  /// what was read again.
  [[nodiscard]] virtual at::Tensor reconstruction_weights(std::int64_t head) const = 0;
  /// Which token each entry came from [N] int64; -1 where it was not told.
  [[nodiscard]] virtual at::Tensor token_ids(std::int64_t head) const = 0;
};

}  // namespace mneme
