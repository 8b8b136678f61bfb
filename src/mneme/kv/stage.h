// KvStage: one step of the pipeline that decides what softmax attention keeps. Stages are written as a chain,
// `snapkv(window=32) | keep(ratio=0.25, sinks=4) | quantize(bits=4)`, and declare what they need, so that a chain is
// checked when it is built and never fails in the middle of a text.
//
// After every chunk of tokens the stages of a layer run in the order
//   score (how much each entry matters) -> budget (how many each head keeps) -> evict (which stay) -> merge (what of the
//   others is folded into them) -> encode (in what form);   retrieve says what a query reads of what is kept.
#pragma once

#include "mneme/mixers/kv_store.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

class HeadProfile;
class LayerView;

/// How much of the attention weights a stage must be shown, in rising cost (none, the rows of the last queries, sums over
/// all queries).
enum class AttentionLevel { none, last_rows, column_sums };

/// What a stage must be given.
struct Needs {
  AttentionLevel attention = AttentionLevel::none;
  std::int64_t query_window = 0;  ///< the last so many queries
  bool token_ids = false;         ///< which token each entry came from
  std::string head_profile;       ///< the numbers of `mneme calibrate` of this name; empty: none
  bool reconstruction = false;    ///< a second pass over the prompt, behind what is held
  /// Also what another stage needs; of two profiles the other's.
  void add(const Needs& other);
};

/// What a stage does.
enum class KvRole { score, budget, evict, merge, encode, retrieve, place };
std::string_view name(KvRole);

enum class KvGranularity { token, block, span };
enum class KvScope { layer, kv_head, model };
enum class KvPhase { prefill_end, every_chunk, decode_step };

/// The entries of one KV head, as a stage sees them.
struct HeadView {
  std::int64_t layer = 0, row = 0, head = 0;
  std::span<const std::int64_t> positions;      ///< [N]
  std::span<const std::int64_t> token_indices;  ///< [N] when each was appended, counted from 0
  [[nodiscard]] std::int64_t entries() const { return static_cast<std::int64_t>(positions.size()); }
};

class KvStage {
 public:
  static constexpr std::string_view kKind = "kv_stage";
  static constexpr std::string_view kKindHelp =
      "what attention keeps: score, budget, evict, merge, encode, retrieve, place";
  using Make = std::unique_ptr<KvStage>();

  virtual ~KvStage() = default;
  [[nodiscard]] virtual KvRole role() const = 0;
  [[nodiscard]] virtual Needs needs() const { return {}; }
  [[nodiscard]] virtual KvGranularity granularity() const { return KvGranularity::token; }
  [[nodiscard]] virtual KvScope scope() const { return KvScope::kv_head; }
  [[nodiscard]] virtual KvPhase phase() const { return KvPhase::every_chunk; }
  /// The most entries that a head holds after this stage, where it bounds them.
  [[nodiscard]] virtual std::optional<std::int64_t> max_entries() const { return std::nullopt; }
  /// Gives it the model's head profile, once, when a plan is built that has one. Throws Error(mismatch) where the numbers
  /// that it needs are missing or of another shape.
  virtual void calibrate(const HeadProfile& /*profile*/) {}
};

/// Says how much each entry matters.
class ScoreStage : public KvStage {
 public:
  [[nodiscard]] KvRole role() const final { return KvRole::score; }
  /// A score [N] f32 for the entries of every KV head of the layer: what is higher is kept longer. Infinities keep and
  /// drop whatever the budget; NaN counts as the lowest.
  [[nodiscard]] virtual std::vector<at::Tensor> score(const LayerView& layer) const = 0;
};

/// Spreads entries over the layers of a model and the heads of a layer; what all may keep together stays the same.
class BudgetStage : public KvStage {
 public:
  [[nodiscard]] KvRole role() const final { return KvRole::budget; }
  /// The share of a head in one of so many layers where an equal share is `each`.
  [[nodiscard]] virtual std::int64_t of_layer(std::int64_t /*layer*/, std::int64_t /*layers*/,
                                              std::int64_t each) const {
    return each;
  }
  /// How many entries each KV head may keep where its layer's share is `each`. `scores` as ScoreStage gives them, empty
  /// where the chain has none; `floor` entries of every head stay whatever their scores.
  [[nodiscard]] virtual std::vector<std::int64_t> of_heads(const LayerView& layer,
                                                           const std::vector<at::Tensor>& scores,
                                                           std::int64_t each,
                                                           std::int64_t floor) const;
  /// Whether the heads of all layers share what they keep, at the prompt's end, where the chain scores: then `of_model`
  /// speaks in place of `of_heads`.
  [[nodiscard]] virtual bool over_layers() const { return false; }
  /// How many entries each may keep of the heads of all layers, one layer after the other.
  [[nodiscard]] virtual std::vector<std::int64_t> of_model(const std::vector<at::Tensor>& scores,
                                                           std::int64_t each,
                                                           std::int64_t floor) const;
};

/// When a layer is looked at.
struct Moment {
  std::int64_t seen = 0;    ///< tokens of the row so far
  std::int64_t chunk = 0;   ///< how many of them came just now
  bool prompt_end = false;  ///< the prompt is complete
};

/// Drops entries of a head; what is not kept is really freed.
class EvictStage : public KvStage {
 public:
  [[nodiscard]] KvRole role() const final { return KvRole::evict; }
  /// Whether it needs scores, so that a chain without a score stage is refused.
  [[nodiscard]] virtual bool wants_scores() const { return false; }
  /// Heads that hold more than `limit` entries (mean over the layer) are cut to `each`.
  struct Due {
    std::int64_t each = 0, limit = 0;
  };
  /// Nothing where no head is touched at this moment.
  [[nodiscard]] virtual std::optional<Due> due(const Moment& moment) const = 0;
  /// Entries of each head that stay whatever their scores.
  [[nodiscard]] virtual std::int64_t floor() const { return 0; }
  /// Appends to `keep` the sorted indices, in [0, entries), that stay: `budget` of them where the stage has one. `scores`
  /// [N], empty where the chain has none.
  virtual void keep(const HeadView& head, std::span<const float> scores, std::int64_t budget,
                    std::vector<std::int64_t>& keep) const = 0;
};

/// Folds what is dropped into what is kept.
class MergeStage : public KvStage {
 public:
  [[nodiscard]] KvRole role() const final { return KvRole::merge; }
  /// Changes keys and values [kept,K], [kept,V] f32 of the entries `keep` of a head in place; keys are turned to their
  /// positions.
  virtual void merge(const LayerView& layer, std::int64_t head,
                     const std::vector<std::int64_t>& keep, at::Tensor& keys,
                     at::Tensor& values) const = 0;
};

/// Moves entries to other positions once others were dropped.
class PlaceStage : public KvStage {
 public:
  [[nodiscard]] KvRole role() const final { return KvRole::place; }
  /// The new positions, ascending, of a head's entries, which stand at `positions`; the newest keeps its own. Entries behind
  /// one that keeps its position keep theirs.
  [[nodiscard]] virtual std::vector<std::int64_t> places(
      std::span<const std::int64_t> positions) const = 0;
};

/// Names the codec in which full pages and stored states are kept.
class EncodeStage : public KvStage {
 public:
  [[nodiscard]] KvRole role() const final { return KvRole::encode; }
  [[nodiscard]] virtual std::string codec() const = 0;
};

/// Holds only some of the numbers of keys, once the prompt is complete.
class NarrowStage : public KvStage {
 public:
  [[nodiscard]] KvRole role() const final { return KvRole::encode; }
  [[nodiscard]] KvPhase phase() const final { return KvPhase::prefill_end; }
  /// The channels of a head's keys, ascending and at least one, that entries hold from now on.
  [[nodiscard]] virtual std::vector<std::uint8_t> channels(const LayerView& layer,
                                                           std::int64_t head) const = 0;
  /// The newest entries, which stay whole.
  [[nodiscard]] virtual std::int64_t recent() const = 0;
};

/// Reads only some of the entries, out of all that are resident, at each decoding step; chunks of several tokens read all.
class SelectStage : public KvStage {
 public:
  [[nodiscard]] KvRole role() const final { return KvRole::retrieve; }
  [[nodiscard]] KvPhase phase() const override { return KvPhase::decode_step; }

  /// How many numbers are remembered of a full page of keys of K numbers; 0: all of this layer is read. Throws
  /// Error(mismatch) where what the stage was calibrated with is of other heads.
  [[nodiscard]] virtual std::int64_t summary_size(std::int64_t layer, std::int64_t K) const = 0;
  /// Writes them for the keys [64,K], turned, of a page of one head; once a page.
  virtual void summarize(std::int64_t layer, std::int64_t head, const float* keys, std::int64_t K,
                         float* summary) const = 0;

  /// The queries of one KV head at a decoding step, and what is remembered of its full pages.
  struct Query {
    std::int64_t layer, head, group, width;
    const float* numbers;                     ///< [group,width], turned
    std::span<const float* const> summaries;  ///< in the order of the pages
  };
  /// What is read of these pages. Pages that are not full, and the newest, are always read.
  struct Selected {
    std::vector<std::int32_t> pages;  ///< ascending
    /// Instead of whole pages the entries, as 64 page + place, ascending: of each query head, or one list for the whole
    /// group; empty: all of `pages`.
    std::vector<std::vector<std::int32_t>> entries;
  };
  /// Writes over all that `out` holds, whose memory is kept between calls. Safe to call from several threads.
  virtual void select(const Query& query, Selected& out) const = 0;
};

/// Keeps entries in a store of its own, which attends to those near and to what it retrieves of those far.
class RetrieveStage : public KvStage {
 public:
  [[nodiscard]] KvRole role() const final { return KvRole::retrieve; }
  [[nodiscard]] virtual std::unique_ptr<KvStore> store(const KvShape& shape, std::int64_t layer,
                                                       std::int64_t rows) const = 0;
  /// Whether a store that holds entries already is one of these.
  [[nodiscard]] virtual bool made(const KvStore& /*store*/) const { return false; }
};

}  // namespace mneme
