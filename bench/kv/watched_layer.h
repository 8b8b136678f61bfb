// WatchedLayer: the attention of one layer over a whole text as KV stages see it, worked out from its definition, so that
// scores and rules can be asked for beside the weights that they are meant to tell.
#pragma once

#include "mneme/kv/layer_view.h"
#include "mneme/models/language_model.h"
#include "mneme/probes/attention.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace mneme::bench {

class WatchedLayer final : public LayerView {
 public:
  /// Of queries [Hq,T,d] and keys [H,T,d] of the tokens `ids` [T] at positions 0 .. T-1, not turned to them. Stages are
  /// shown the last `window` queries. `shape` must outlive this.
  WatchedLayer(const AttentionShape& shape, std::int64_t layer, const at::Tensor& queries,
               const at::Tensor& keys, std::span<const std::int32_t> ids, std::int64_t window);

  [[nodiscard]] HeadView head(std::int64_t head) const override;
  [[nodiscard]] at::Tensor keys(std::int64_t head) const override;
  /// Throws Error(unsupported): values are not watched.
  [[nodiscard]] at::Tensor values(std::int64_t head) const override;
  [[nodiscard]] at::Tensor unrotated_keys(std::int64_t head) const override;
  [[nodiscard]] at::Tensor turned(const at::Tensor& x,
                                  const std::vector<std::int64_t>& positions) const override;
  [[nodiscard]] at::Tensor queries(std::int64_t head) const override;
  [[nodiscard]] const std::vector<std::int64_t>& query_positions() const override {
    return query_positions_;
  }
  [[nodiscard]] at::Tensor window_weights(std::int64_t head, std::int64_t queries) const override;
  [[nodiscard]] at::Tensor column_sums(std::int64_t head) const override;
  /// Throws Error(unsupported): the text is read once.
  [[nodiscard]] at::Tensor reconstruction_weights(std::int64_t head) const override;
  [[nodiscard]] at::Tensor token_ids(std::int64_t head) const override;

  /// What each entry of a KV head receives of a query that sees it, mean over these and over its query heads [T] f32.
  [[nodiscard]] at::Tensor mean_attention(std::int64_t head) const;

 private:
  const AttentionShape& shape_;
  std::vector<std::int64_t> positions_, query_positions_;
  at::Tensor plain_keys_, keys_;  ///< [H,T,d] f32
  at::Tensor queries_, window_;   ///< [Hq,w,d], [Hq,w,T] f32
  at::Tensor sums_;               ///< [Hq,T] f32
  at::Tensor ids_;                ///< [T] int64
};

/// Reads the ids as one text in a single pass and shows every layer of it. `between` is called before and may throw.
void watch_layers(const LanguageModel& model, const AttentionShape& shape,
                  const std::vector<std::int32_t>& ids, std::int64_t window,
                  const std::function<void()>& between,
                  const std::function<void(const WatchedLayer& layer)>& see);

}  // namespace mneme::bench
