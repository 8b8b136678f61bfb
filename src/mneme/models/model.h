// Model: an arrangement of blocks that maps ids or embeddings to hidden states and logits over one State.
#pragma once

#include "mneme/core/call.h"
#include "mneme/core/params.h"
#include "mneme/core/state.h"
#include "mneme/layers/feed_forward.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// Where the vocabulary is projected: nowhere, at the last token of each row, at all tokens, or at the batch's `chosen`.
enum class LogitsAt { none, last, all, chosen };

/// One forward pass. Rows shorter than T are padded at their end.
struct Batch {
  at::Tensor ids;         ///< [B,T] int64, or undefined when embeddings are given
  at::Tensor embeddings;  ///< [B,T,D] float
  at::Tensor positions;   ///< [B,T] int64; undefined: each row goes on from its State's position
  std::vector<std::int64_t> lengths;  ///< tokens of each row; empty: all T
  Pattern pattern;      ///< decoders are causal, encoders bidirectional unless said otherwise
  at::Tensor segments;  ///< [B,T] int64 or undefined
  at::Tensor
      segment_sees;  ///< [B,S,S] bool: segment i sees entries of segment j; undefined: its own only
  LogitsAt logits_at = LogitsAt::last;
  at::Tensor chosen;  ///< [N] int64, places b T + t of tokens, for LogitsAt::chosen
  const Taps* taps = nullptr;
  std::int64_t from_layer = 0,
               to_layer =
                   -1;  ///< layers [from, to); -1: all. From > 0 takes embeddings as hidden states.
  Mode mode = Mode::infer;
  Compute compute = Compute::automatic;
  Cost* cost = nullptr;
};

/// What a pass gives.
struct Output {
  at::Tensor
      logits;  ///< [B,V] for `last`, [B,T,V] for `all`, [N,V] for `chosen`, undefined for `none`; float
  at::Tensor
      hidden;  ///< [B,T,D] after the last layer run (normalised if it is the model's last); float
  std::map<std::string, at::Tensor> aux;  ///< named losses
};

/// Sizes a caller may need.
struct ModelShape {
  std::int64_t vocabulary = 0, model = 0, layers = 0, context = 0;
};

class Model {
 public:
  static constexpr std::string_view kKind = "model";
  static constexpr std::string_view kKindHelp =
      "arrangements of blocks: decoders, encoders, segment cells";
  using Make = std::unique_ptr<Model>(Params&);

  virtual ~Model() = default;
  [[nodiscard]] virtual const ModelShape& shape() const = 0;
  /// An empty State for B sequences.
  [[nodiscard]] virtual State start(std::int64_t B) const = 0;
  /// Runs the batch and advances the State. Any chunking of the same tokens gives the same outputs.
  /// Throws Error(invalid) on impossible shapes or ids, Error(full) past the context.
  [[nodiscard]] virtual Output forward(const Batch& batch, State& state) const = 0;
  /// Embeddings [B,T,D] of ids [B,T].
  [[nodiscard]] virtual at::Tensor embed(const at::Tensor& ids) const = 0;
  /// Puts another feed-forward in place of a layer's own; throws Error(unsupported) where a model has none.
  virtual void set_feed_forward(std::int64_t layer,
                                std::shared_ptr<const FeedForward> feed_forward);
};

}  // namespace mneme
