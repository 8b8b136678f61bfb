// KvStore: what softmax attention keeps of the tokens it has seen. Owned by the attention mixers, implemented in kv/.
//
// Keys come and go unrotated: the store decides whether it keeps them turned to their positions, and where a stored
// entry stands when it is read (placement). Queries come unrotated for the same reason.
#pragma once

#include "mneme/core/call.h"
#include "mneme/core/error.h"
#include "mneme/core/state.h"
#include "mneme/layers/rope.h"
#include "mneme/mixers/attention/partial.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

namespace mneme {

class KvPlan;
struct Needs;

/// Sizes of one layer's entries.
struct KvShape {
  std::int64_t heads = 0, key = 0, value = 0;
  std::shared_ptr<const Rope> rope;  ///< null: no rotary positions
};

/// Entries of one row as they were computed: what a memory stores of a span in one layer.
struct KvSlice {
  at::Tensor keys;    ///< [H,n,K] f32, unrotated
  at::Tensor values;  ///< [H,n,V] f32
  /// Where heads hold entries of their own choice: of each head, ascending, the tokens of the slice that its entries came
  /// from; a head with fewer than n has its entries first. Empty: n tokens, all of them in every head.
  std::vector<std::vector<std::int64_t>> places = {};
  std::int64_t tokens_of_places = 0;  ///< of the slice, where `places` is given
  [[nodiscard]] std::int64_t tokens() const {
    return places.empty() ? keys.size(1) : tokens_of_places;
  }
};

/// Entries [begin, end) of a row, counted as appended.
struct EntryRange {
  std::int64_t begin = 0, end = 0;

  bool operator==(const EntryRange&) const = default;
};

class KvStore : public StateStore {
 public:
  static constexpr std::string_view kKind = "kv_store";
  static constexpr std::string_view kKindHelp = "keeps keys and values of softmax attention";
  using Make = std::unique_ptr<KvStore>(const KvShape&, std::int64_t rows);

  /// Takes in keys [B,H,T,K] and values [B,H,T,V], unrotated, of the call's positions and lengths.
  virtual void append(const at::Tensor& keys, const at::Tensor& values, const Call& call) = 0;
  /// Drops what the plan does not keep. Called once the appended tokens have attended: within a chunk every token still
  /// sees those right before it.
  virtual void settle() = 0;
  /// Attention of unrotated queries [B,G*H,T,K] over all that is held and visible; `lse` only when asked for.
  [[nodiscard]] virtual Partial attend(const at::Tensor& queries, const Call& call, double scale,
                                       bool want_lse) const = 0;

  /// Entries [begin, end) of a row, counted as appended, unrotated; throws Error(unsupported) where a head dropped some.
  [[nodiscard]] virtual KvSlice read(std::int64_t row, std::int64_t begin,
                                     std::int64_t end) const = 0;
  /// The same where heads may have dropped some: what each still holds of them, with its places.
  [[nodiscard]] virtual KvSlice read_kept(std::int64_t row, std::int64_t begin,
                                          std::int64_t end) const {
    return read(row, begin, end);
  }
  /// Appends a slice to a row, its keys turned to `position`, `position` + 1, ... by token. Throws Error(unsupported) for
  /// one with places where heads cannot differ.
  virtual void place(std::int64_t row, const KvSlice& slice, std::int64_t position,
                     Compute compute) = 0;

  /// From now on entries are kept as the plan says, in one layer of so many.
  virtual void use(std::shared_ptr<const KvPlan> plan, std::int64_t layer, std::int64_t layers) = 0;
  /// The first n tokens of every row are no business of the plan: it neither sees, counts, merges nor drops them. Called
  /// before it has dropped any. Throws Error(unsupported) where a store keeps entries in another way.
  virtual void protect(std::int64_t /*n*/) {
    throw Error(Errc::unsupported, "a store that retrieves keeps no tokens apart from its plan");
  }
  /// From now on attention is looked at as if a plan needed it so.
  virtual void look_for(const Needs& /*needs*/) {}
  /// Whether `observe` wants to be told of each attention.
  [[nodiscard]] virtual bool observes() const { return false; }
  /// What was just attended to, before `settle`: the queries as attend took them and the lse [B,G*H,T] of their weights.
  virtual void observe(const at::Tensor& /*queries*/, const at::Tensor& /*lse*/,
                       const Call& /*call*/, double /*scale*/) {}
  /// The prompt is complete: drops what the plan does not keep of one.
  virtual void finish_prompt() {}
  /// Time spent on looking at attention and on dropping entries.
  [[nodiscard]] virtual double observe_seconds() const { return 0; }
  /// How many positions away from a query what it reads may stand, where entries are placed near: a text may then grow past
  /// the positions that the model was made for. Nothing where they stand where they came.
  [[nodiscard]] virtual std::optional<std::int64_t> farthest() const { return std::nullopt; }
  [[nodiscard]] virtual const KvShape& shape() const = 0;

  /// Tokens ever taken into a row, and entries that its heads hold now (mean over heads).
  [[nodiscard]] virtual std::int64_t seen(std::int64_t row) const = 0;
  [[nodiscard]] virtual double kept(std::int64_t row) const = 0;
  /// What a KV head could read of a row at its last step, of what it still holds: ascending ranges that do not touch. Of
  /// stores that choose entries by query heads, what any of the KV head's read. Nothing where a store cannot tell.
  [[nodiscard]] virtual std::optional<std::vector<EntryRange>> readable(
      std::int64_t /*row*/, std::int64_t /*head*/) const {
    return std::nullopt;
  }
  /// Bytes allocated for keys and values, pages shared with forks included.
  [[nodiscard]] virtual std::int64_t allocated_bytes() const = 0;
};

}  // namespace mneme
