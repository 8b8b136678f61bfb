// KvStage: one step of the pipeline that decides what softmax attention keeps. Stages are written as a chain,
// `window(sinks=4, size=1024) | quantize(bits=8)`, and declare what they need, so that a chain is checked when it is
// built and never fails in the middle of a text.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// How much of the attention weights a stage must be shown, in rising cost (none, the last rows, column sums, the row of
/// each decoding step, the weights of a block of queries).
enum class AttentionLevel { none, last_rows, column_sums, decode_row, weights };

/// What a stage must be given.
struct Needs {
  AttentionLevel attention = AttentionLevel::none;
  std::int64_t query_window = 0;  ///< the last so many queries
  bool unrotated_keys = false, token_ids = false, head_profile = false;
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
};

/// Drops entries of a head; what is not kept is really freed.
class EvictStage : public KvStage {
 public:
  [[nodiscard]] KvRole role() const final { return KvRole::evict; }
  /// Appends to `keep` the sorted indices, in [0, entries), that stay.
  virtual void keep(const HeadView& head, std::vector<std::int64_t>& keep) const = 0;
};

/// Names the codec in which full pages and stored states are kept.
class EncodeStage : public KvStage {
 public:
  [[nodiscard]] KvRole role() const final { return KvRole::encode; }
  [[nodiscard]] virtual std::string codec() const = 0;
};

}  // namespace mneme
