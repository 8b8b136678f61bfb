// RetrievingKv: the last tokens near, all others in blocks, of which attention reads a few that it retrieves.
//
// A row is, from its first token to its last,
//   sinks | blocks ... | remainder, in no block yet | local window
// and queries attend in two stages that share one softmax, o = sum_s exp(lse_s - lse) o_s:
//   local  the last `local` entries, causal, keys and queries turned to their positions
//   far    what stands `local` or farther back of the retrieved blocks, the sinks and the remainder: keys unturned, queries
//          turned by the one angle of position local - 1, so that all of them stand equally far away (place near); or keys
//          and queries turned to their positions (place original)
// Tokens are taken in by chunks that end at multiples of `chunk`, whatever the calls: so blocks and choices depend on the
// text, and on how the calls cut a chunk, alone. The weights of both stages' softmax that a window's entries get, summed
// for every query head, say which of them stand for their block once they leave.
#pragma once

#include "mneme/kernels/attend.h"
#include "mneme/kv/block_store.h"
#include "mneme/kv/stage.h"
#include "mneme/mixers/kv_store.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

struct RetrieveSettings {
  std::string spec;           ///< the stage that the store is made by, by which it is loaded again
  std::int64_t sinks = 128;   ///< first entries, always read
  std::int64_t local = 4096;  ///< entries of the window
  std::int64_t chunk = 512;   ///< most queries that share one choice, at most `local`
  std::int64_t refresh = 1;   ///< decoding steps that share one choice
  /// Where far entries and the queries that read them stand: as far apart as the window reaches; entries at position 0
  /// and queries at their own; or both at their own.
  enum class Place : std::uint8_t { near, zero, original } place = Place::near;
  std::int64_t band = 0;  ///< of so many weights of each query `cut` is told, at most `local`
  /// Above 0: not blocks are read but single entries out of blocks of one size, so many by every query and query head for
  /// itself: those of the largest cosine of key and query, if it is at least `least_cosine`. `memories` false: none at all.
  std::int64_t entries = 0;
  double least_cosine = -1;
  bool memories = true;
  bool scores_by_head = false;  ///< blocks have a score from every KV head, else one from all
  BlockStore::Options blocks;
};

/// Entries that have left the window and are in no block yet.
struct LeftEntries {
  std::int64_t entries = 0;
  /// [entries,band] what entry i, as a query, gave entry i - k, on average over query heads; zeros before the first entry.
  std::vector<float> weights;
  std::vector<float>
      even;  ///< [entries] what it would have given each of its window, had it given all the same
};

/// How entries that have left the window become blocks, and which blocks are read.
class RetrieveMethod {
 public:
  virtual ~RetrieveMethod() = default;
  /// Whether so many entries that have left the window suffice to cut one block or more off.
  [[nodiscard]] virtual bool ready(std::int64_t left) const = 0;
  /// The sizes of the next blocks, one behind the other from the first entry; at least one, and no more than have left.
  [[nodiscard]] virtual std::vector<std::int64_t> cut(const LeftEntries& left) const = 0;
  /// Whether `speakers` looks at weights.
  [[nodiscard]] virtual bool wants_weights() const { return true; }
  /// Places in a block of the entries whose mean key stands for it, by the weights [n] that they had in the window.
  [[nodiscard]] virtual std::vector<std::int64_t> speakers(
      std::span<const float> weights) const = 0;
  /// The blocks that are read, ascending, by their scores [heads,blocks], heads being all KV heads or 1, and their sizes:
  /// one list for all KV heads, or a list for each.
  [[nodiscard]] virtual std::vector<std::vector<std::int64_t>> choose(
      std::int64_t heads, std::span<const float> scores,
      std::span<const std::shared_ptr<const Block>> blocks) const = 0;
};

class RetrievingKv final : public KvStore {
 public:
  RetrievingKv() = default;  ///< to be loaded into
  /// Throws Error(unsupported) where keys and values have widths that the kernels do not take.
  RetrievingKv(const KvShape& shape, std::int64_t layer, std::int64_t rows,
               const RetrieveSettings& settings, std::shared_ptr<const RetrieveMethod> method);

  [[nodiscard]] std::string_view name() const override { return "retrieving_kv"; }
  [[nodiscard]] std::int64_t rows() const override {
    return static_cast<std::int64_t>(rows_.size());
  }
  [[nodiscard]] std::unique_ptr<StateStore> fork() const override;
  void save(ByteWriter&) const override;
  void load(ByteReader&) override;
  /// Throws Error(unsupported) once a row has a block. What the forgotten queries added to weights stays.
  void rewind(std::int64_t n) override;
  [[nodiscard]] std::unique_ptr<StateStore> select(
      const std::vector<std::int64_t>& rows) const override;
  [[nodiscard]] std::unique_ptr<StateStore> concat(
      const std::vector<const StateStore*>& others) const override;
  void reset(const std::vector<bool>& rows) override;
  void detach() override {}

  void append(const at::Tensor& keys, const at::Tensor& values, const Call& call) override;
  void settle() override;
  /// Appended tokens enter their row's window here, chunk by chunk. Throws Error(unsupported) on a pattern with a window or
  /// by segment.
  [[nodiscard]] Partial attend(const at::Tensor& queries, const Call& call, double scale,
                               bool want_lse) const override;
  [[nodiscard]] KvSlice read(std::int64_t row, std::int64_t begin, std::int64_t end) const override;
  void place(std::int64_t row, const KvSlice& slice, std::int64_t position,
             Compute compute) override;
  /// Throws Error(unsupported) on another plan than the one it was made by.
  void use(std::shared_ptr<const KvPlan> plan, std::int64_t layer, std::int64_t layers) override;
  [[nodiscard]] std::int64_t seen(std::int64_t row) const override;
  [[nodiscard]] double kept(std::int64_t row) const override;
  /// Nothing before the first step of a row, and none of a loaded one.
  [[nodiscard]] std::optional<std::vector<EntryRange>> readable(std::int64_t row,
                                                                std::int64_t head) const override;
  /// With what stands for blocks.
  [[nodiscard]] std::int64_t allocated_bytes() const override;
  [[nodiscard]] std::optional<std::int64_t> farthest() const override {
    if (settings_.place != RetrieveSettings::Place::near) return std::nullopt;
    return settings_.local;
  }
  [[nodiscard]] const KvShape& shape() const override { return shape_; }

  // ---- what it holds, to be looked at ----
  [[nodiscard]] const std::string& spec() const { return settings_.spec; }
  [[nodiscard]] std::int64_t blocks(std::int64_t row) const;
  /// Bytes of the vectors that stand for the blocks of all rows.
  [[nodiscard]] std::int64_t vector_bytes() const;
  /// Entries of a row that are in no block.
  [[nodiscard]] std::int64_t recent(std::int64_t row) const;
  /// What stands for a block: [Hq,K]; where single entries are read, the directions of an entry's keys: [H,K].
  [[nodiscard]] at::Tensor vector(std::int64_t row, std::int64_t block) const;
  /// The blocks that the last chunk of a row read: one list for all KV heads, or a list for each.
  [[nodiscard]] const std::vector<std::vector<std::int64_t>>& chosen(std::int64_t row) const;
  /// The first token index of every block of a row.
  [[nodiscard]] std::vector<std::int64_t> block_starts(std::int64_t row) const;

 private:
  /// Up to 64 neighbouring entries of all heads. Those that some row counts never change, so that forks may read them.
  struct Page {
    std::shared_ptr<std::byte> bytes;  ///< turned keys, values and, placed near, unturned keys
    std::byte *turned = nullptr, *values = nullptr, *plain = nullptr;  ///< [H,64,K]
    std::array<std::int64_t, kernels::kPageEntries> positions{}, indices{};
  };
  struct Recent {
    std::shared_ptr<Page> page;
    std::int64_t first = 0, entries = 0;  ///< index of the first entry; how many
    std::vector<float>
        weights;              ///< [Hq,64] sums over queries; empty before the first, and of sinks
    std::vector<float> band;  ///< [64,band] as in LeftEntries, likewise
  };
  /// What is remembered of a row's last step, beside its chosen blocks.
  struct Step {
    std::int64_t seen = 0;     ///< entries of the row then
    std::int64_t blocked = 0;  ///< of them behind the sinks, those that were in blocks
    /// Single entries behind the sinks that the last query's heads read, unsorted and some twice, of each KV
    /// head; empty: none.
    std::vector<std::vector<std::int64_t>> entries;
  };
  struct Row {
    std::vector<Recent> sinks, window;  ///< the window with the remainder before it
    std::int64_t seen = 0;
    std::int64_t blocked = 0;  ///< entries behind the sinks that are in blocks
    std::vector<std::shared_ptr<const Block>> blocks;
    std::vector<VectorTable> vectors;  ///< one for every head that has scores
    std::vector<std::vector<std::int64_t>> chosen;
    std::int64_t steps = 0;  ///< decoding steps that have used the choice
    std::optional<Step> last;
  };
  /// Tokens that have not attended yet.
  struct Pending {
    at::Tensor keys, values, positions;  ///< [B,H,T,K], [B,H,T,V] f32, [B,T]
    std::vector<std::int64_t> lengths;
  };
  /// The queries of a chunk of one row.
  struct Queries {
    const float* data;  ///< number i of head h at time t: [h head_stride + t time_stride + i]
    std::int64_t head_stride, time_stride, T, first;  ///< first: index of the first query
    const std::int64_t* positions;
  };

  [[nodiscard]] kernels::KvType kernel_type() const;
  [[nodiscard]] std::int64_t number_bytes() const;
  [[nodiscard]] bool keeps_plain() const {
    return shape_.rope && settings_.place != RetrieveSettings::Place::original;
  }
  [[nodiscard]] std::shared_ptr<Page> new_page() const;
  /// Tables of vectors: one for all heads, or one for each KV head.
  [[nodiscard]] std::int64_t score_heads() const {
    return settings_.scores_by_head || settings_.entries > 0 ? shape_.heads : 1;
  }
  [[nodiscard]] std::int64_t vector_width() const {
    return settings_.entries > 0 ? shape_.key : query_heads_ * shape_.key / score_heads();
  }
  /// Vectors that stand for a block of n entries.
  [[nodiscard]] std::int64_t vectors_of(std::int64_t n) const {
    return settings_.entries > 0 ? n : 1;
  }
  void set_type(Compute compute);
  /// n tokens, unturned keys and values [H,n,K] f32 contiguous, behind the row's last.
  void take(Row& row, std::int64_t n, const float* keys, const float* values,
            const std::int64_t* positions) const;
  void take_pending(Row& row, std::int64_t b, std::int64_t begin, std::int64_t n) const;
  /// Makes blocks of what no query will see in its window any more.
  void make_blocks(Row& row) const;
  void make_block(Row& row, std::int64_t entries) const;
  /// Keys as they are in blocks, of an entry of a window.
  [[nodiscard]] const std::byte* far_keys(const Page& page) const {
    return keeps_plain() ? page.plain : page.turned;
  }
  void add_vectors(Row& row, const std::byte* numbers, std::int64_t n,
                   std::span<const float> weights) const;
  [[nodiscard]] std::vector<std::vector<std::int64_t>> choose(const Row& row,
                                                              const float* far_queries,
                                                              std::int64_t T) const;
  struct Scratch;
  /// The blocks that a chunk reads, by the queries in `scratch`.
  void read_blocks(const Row& row, Row* changing, std::int64_t T, std::int64_t first,
                   Scratch& scratch) const;
  /// The entries that each query reads for itself, as tasks of its own.
  void read_entries(const Row& row, Row* changing, std::int64_t T, std::int64_t first,
                    Scratch& scratch) const;
  /// Attends, and observes where `row` may change: out and lse [T,Hq,K] and [Hq,T], contiguous.
  void attend_chunk(const Row& row, Row* changing, const Queries& queries, double scale,
                    kernels::Products products, float* out, float* lse) const;
  void add_weights(Row& row, const float* turned, const Queries& queries, double scale,
                   const float* lse) const;
  void add_band(Row& row, const float* turned, const Queries& queries, double scale,
                const float* lse) const;
  [[nodiscard]] LeftEntries left_entries(const Row& row, std::int64_t left) const;
  [[nodiscard]] kernels::PageView view(const Recent& recent, std::int64_t head, std::int64_t begin,
                                       std::int64_t end, const std::byte* keys) const;

  KvShape shape_;
  std::int64_t layer_ = 0;
  RetrieveSettings settings_;
  std::shared_ptr<const RetrieveMethod> method_;
  // A token enters its row when it attends: its chunk's choice and the weights that it gives are of that moment.
  mutable std::vector<Row> rows_;
  mutable Pending pending_;
  mutable BlockStore store_{BlockStore::Options{}};
  mutable std::int64_t query_heads_ = 0;  ///< known from the first queries on
  std::optional<bool> half_;  ///< whether numbers are in half precision; set by the first
};

}  // namespace mneme
