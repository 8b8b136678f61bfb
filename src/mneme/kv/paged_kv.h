// PagedKv: keys and values in reference-counted pages of 64 entries, a separate list of pages for every row and head.
//
// Forks share pages until one side appends; a head may drop entries that its neighbours keep (ragged); what no list
// refers to any more is freed. Keys are kept turned to their positions. While a gradient is wanted, or numbers are not
// f32, entries stay as the tensors they came as ("live") and attention takes its plain form; `detach` pages them.
#pragma once

#include "mneme/kernels/attend.h"
#include "mneme/kv/layer_view.h"
#include "mneme/kv/plan.h"
#include "mneme/mixers/kv_store.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme {

class PagedKv final : public KvStore {
 public:
  PagedKv() = default;  ///< to be loaded into
  PagedKv(const KvShape& shape, std::int64_t rows);

  [[nodiscard]] std::string_view name() const override { return "paged_kv"; }
  [[nodiscard]] std::int64_t rows() const override {
    return static_cast<std::int64_t>(rows_.size());
  }
  [[nodiscard]] std::unique_ptr<StateStore> fork() const override;
  void save(ByteWriter&) const override;
  void load(ByteReader&) override;
  void rewind(std::int64_t n) override;
  [[nodiscard]] std::unique_ptr<StateStore> select(
      const std::vector<std::int64_t>& rows) const override;
  [[nodiscard]] std::unique_ptr<StateStore> concat(
      const std::vector<const StateStore*>& others) const override;
  void reset(const std::vector<bool>& rows) override;
  void detach() override;

  void append(const at::Tensor& keys, const at::Tensor& values, const Call& call) override;
  void settle() override;
  [[nodiscard]] Partial attend(const at::Tensor& queries, const Call& call, double scale,
                               bool want_lse) const override;
  [[nodiscard]] KvSlice read(std::int64_t row, std::int64_t begin, std::int64_t end) const override;
  [[nodiscard]] KvSlice read_kept(std::int64_t row, std::int64_t begin,
                                  std::int64_t end) const override;
  void place(std::int64_t row, const KvSlice& slice, std::int64_t position,
             Compute compute) override;
  void protect(std::int64_t n) override { protected_ = n; }
  void use(std::shared_ptr<const KvPlan> plan, std::int64_t layer, std::int64_t layers) override;
  void look_for(const Needs& needs) override;
  [[nodiscard]] bool observes() const override;
  void observe(const at::Tensor& queries, const at::Tensor& lse, const Call& call,
               double scale) override;
  void finish_prompt() override { finish_prompt({this}); }
  /// The same of all layers of a model together, which may share what they keep. Their plans are of the same stages.
  static void finish_prompt(const std::vector<PagedKv*>& layers);

  /// Whether the plan scores by a second pass over the prompt, which somebody else has to run.
  [[nodiscard]] bool needs_reconstruction() const;
  /// From now on it notes the most weight that queries to come give the entries of the tokens [begin, end), of softmax over
  /// these, the first `sinks` tokens and what comes from now on; and it drops nothing. For a fork that is then thrown away.
  void watch(std::int64_t begin, std::int64_t end, std::int64_t sinks);
  /// Takes over what a fork of this has noted.
  void take_watched(const PagedKv& fork);
  [[nodiscard]] double observe_seconds() const override { return observe_seconds_; }
  [[nodiscard]] std::optional<std::int64_t> farthest() const override;
  [[nodiscard]] const KvShape& shape() const override { return shape_; }
  [[nodiscard]] std::int64_t seen(std::int64_t row) const override;
  [[nodiscard]] double kept(std::int64_t row) const override;
  /// What it holds; nothing under a plan that selects at decoding steps, whose choices are not kept.
  [[nodiscard]] std::optional<std::vector<EntryRange>> readable(std::int64_t row,
                                                                std::int64_t head) const override;
  [[nodiscard]] std::int64_t allocated_bytes() const override;

 private:
  struct Row;
  /// Tokens that a row takes in: pages count them in 32 bits.
  static constexpr std::int64_t kMostTokens = std::int64_t{1} << 31;
  /// Throws Error(full) where a row has no room for n more tokens.
  static void check_room(const Row& row, std::int64_t n);

  /// Up to 64 entries of one head. Entries before `filled` never change, so that forks may go on reading them.
  struct Page {
    // What every step asks the page that it writes to, side by side and without going through tensors.
    std::byte *k_numbers = nullptr,
              *v_numbers = nullptr;  ///< [64,K], [64,V] of `type`; null: encoded
    /// Which channels of keys are held, keys being [64,channels] then; null: all.
    std::shared_ptr<const std::vector<std::uint8_t>> channels;
    kernels::PositionRange range;  ///< of all positions
    std::int32_t filled = 0;
    kernels::KvType type = kernels::KvType::f32;

    std::shared_ptr<std::byte> bytes;  ///< the numbers, or the codec's of `filled` entries
    std::int64_t code_bytes = 0;       ///< 0: not encoded
    std::array<std::int64_t, kernels::kPageEntries> positions{};
    std::array<std::int32_t, kernels::kPageEntries> indices{};  ///< below kMostTokens
    /// Of a full page, what the selecting stage of a plan remembers of it.
    std::shared_ptr<std::byte> summary;
    std::shared_ptr<const KvPlan> summarized_by;

    [[nodiscard]] bool encoded() const { return k_numbers == nullptr; }
    [[nodiscard]] at::ScalarType number_type() const;
    /// Takes memory for keys of K and values of V numbers, f16 or f32.
    void make_room(std::int64_t K, std::int64_t V, at::ScalarType number_type);
    void hold_code(std::string_view code);
    [[nodiscard]] std::string_view code() const;
    /// Puts an entry's position and index at place i.
    void put(std::int64_t i, std::int64_t position, std::int64_t index);
    /// Asks for the memory that an entry at place i is written to.
    void fetch(std::int64_t i, const KvShape& shape) const;
  };
  /// f32 numbers of one row's heads: number d of token t and head h at [h head_stride + t time_stride + d].
  struct Numbers {
    const float* data;
    std::int64_t head_stride, time_stride;
  };
  [[nodiscard]] static std::shared_ptr<Page> make_page();
  [[nodiscard]] static std::shared_ptr<Page> make_page(const Page& like);
  /// A run of a page's entries.
  struct Run {
    std::shared_ptr<Page> page;
    std::int32_t begin = 0, count = 0;
  };
  struct Head {
    std::vector<Run> runs;
    /// Each run as the kernels read it, so that a step need not look at every page; k is null where it is to be decoded.
    std::vector<kernels::PageView> views;
    bool decodes = false;  ///< some view's k may be null
    /// What the plan's selecting stage remembers of each run; null where it must be read. Longer than `runs` after a rewind.
    std::vector<const float*> summaries;
    /// [m,K] the first m keys, which were moved, as they were computed: turning always starts there, so that errors do not
    /// add up.
    std::vector<float> homes;
    std::vector<float>
        sums;  ///< [N,G] what each entry received from all queries; empty: not looked at
    /// The most weight that each of the first entries got when the prompt was read again; NaN: none was noted.
    std::vector<float> again;
    [[nodiscard]] std::int64_t entries() const;
    /// Entries of tokens before the given one.
    [[nodiscard]] std::int64_t entries_before(std::int64_t index) const;
  };
  struct Row {
    std::vector<Head> heads;
    std::int64_t seen = 0;
    bool dropped = false;  ///< some head no longer holds all it was given
    std::vector<std::int64_t>
        segments;  ///< of every token taken in, by its index; empty: none were given
    std::vector<std::int64_t> tokens;           ///< ids by index, -1 unknown; empty: not looked for
    std::vector<float> queries;                 ///< [w,Hq,K] the last ones, turned
    std::vector<std::int64_t> query_positions;  ///< [w]
    std::int64_t read_again = 0;  ///< tokens that had come when the prompt was read again
  };
  /// Tensors kept as they came, one set for all rows.
  struct Live {
    at::Tensor k, v;       ///< [B,H,N,K], [B,H,N,V]; keys turned
    at::Tensor positions;  ///< [B,N]
    at::Tensor valid;      ///< [B,N] bool
    at::Tensor segments;   ///< [B,N] or undefined: none were given
  };

  void append_live(const at::Tensor& keys, const at::Tensor& values, const Call& call);
  /// Keys (turned) and values of n tokens, appended to a row in numbers of `type`.
  void append_row(Row& row, std::int64_t n, const Numbers& k, const Numbers& v, at::ScalarType type,
                  const std::int64_t* positions, const std::int64_t* segments);
  /// n entries behind a head's last, which come from the tokens `indices`.
  void append_head(Head& head, std::int64_t h, std::int64_t n, const float* k,
                   std::int64_t k_stride, const float* v, std::int64_t v_stride,
                   at::ScalarType type, const std::int64_t* positions, const std::int64_t* indices);
  /// Whether full pages are encoded by now: where the prompt's end cuts, only then, so that nothing is encoded twice.
  [[nodiscard]] bool encodes() const {
    return plan_ && plan_->codec() && (prompt_finished_ || !plan_->cuts_at_prompt_end());
  }
  /// Puts the codec's bytes in place of every page, from the given run on, that is full and has lost no entry.
  void encode_full_pages(Head& head, std::size_t from);
  /// Queries [B,T,Hq,K] as projections lay them out, turned.
  void turn_queries(const at::Tensor& queries, const Call& call, std::vector<float>& turned) const;
  /// How many tokens the plan counts of a row, of which `chunk` came just now.
  [[nodiscard]] Moment moment_of(const Row& row, std::int64_t chunk, bool prompt_end) const;
  /// What the stages that serve an evicting one say of a row where it is due.
  struct Judged {
    std::int64_t each = 0;              ///< an equal share
    std::vector<at::Tensor> scores;     ///< of each head; empty: the chain has none
    std::vector<std::int64_t> budgets;  ///< of each head; empty: an equal share
  };
  [[nodiscard]] std::optional<Judged> judged(std::int64_t row, const KvPlan::Eviction& eviction,
                                             const Moment& moment);
  /// Cuts the heads of a row to their budgets.
  void cut(std::int64_t row, const KvPlan::Eviction& eviction, const Moment& moment,
           Judged& judged);
  /// Drops what the plan does not keep of a row, of which `chunk` tokens came just now.
  void settle_row(std::int64_t row, std::int64_t chunk);
  void settle_row(std::int64_t row, const KvPlan::Eviction& eviction, const Moment& moment);
  /// Of the heads of all layers, which share their budget, at the prompt's end.
  static void settle_together(const std::vector<PagedKv*>& layers, std::int64_t row,
                              std::size_t eviction);
  [[nodiscard]] Moment at_prompt_end(std::int64_t row) const;
  /// Has a row in the form that the plan gives what is no longer cut.
  void encode_and_narrow(std::int64_t row);
  /// Entries of a head that the plan does not touch; they are its first.
  [[nodiscard]] std::int64_t hidden(const Head& head) const;
  /// The same entries where the plan places them.
  [[nodiscard]] Head placed(const Head& head) const;
  /// The same entries, all but the newest ones with some channels of their keys.
  [[nodiscard]] Head narrowed(const Head& head, std::vector<std::uint8_t> channels,
                              std::int64_t recent) const;
  /// The entries of a head at the sorted places `keep`, put into `out`, whose memory they use.
  void keep_of(const Head& head, const std::vector<std::int64_t>& keep, Head& out) const;
  /// Entries with keys and values [N,K], [N,V] f32 in new pages, where `like` has their positions.
  [[nodiscard]] Head rewritten(const Head& like, const at::Tensor& keys,
                               const at::Tensor& values) const;
  /// All keys and values of a head [N,K], [N,V] f32, turned.
  [[nodiscard]] std::pair<at::Tensor, at::Tensor> gathered(const Head& head) const;
  /// Keys [64,width] and values [64,V] of `type`, which somebody else holds.
  struct PageNumbers {
    const std::byte *k, *v;
    std::int64_t width;
    at::ScalarType type;
  };
  [[nodiscard]] static PageNumbers of_tensors(const at::Tensor& k, const at::Tensor& v);
  /// Copies entries, given by their places in the numbers of a page, behind the head's last; `like` is a page with their
  /// positions, indices and channels.
  void append_copies(Head& head, const PageNumbers& from, const Page& like,
                     const std::vector<std::int64_t>& places) const;
  /// The same of a page as it is held, decoded if need be.
  void append_copies(Head& head, const Page& page, const std::vector<std::int64_t>& places) const;
  /// Lists of pages that the queries [G,K], turned, of a head read at a decoding step, one for all of them or one each.
  struct Selection;
  /// Pages that were decoded to be read, and the views that name them.
  struct Decoded {
    std::vector<at::Tensor> numbers;
    std::deque<std::vector<kernels::PageView>> views;
  };
  void select_pages(std::int64_t h, std::int64_t group, const Head& head, const float* queries,
                    std::span<const kernels::PageView> all, Selection& out) const;
  /// Has the plan's selecting stage summarize full pages that it has not seen.
  void summarize(Head& head, std::int64_t h, std::size_t from);
  /// Numbers of a key that a page holds.
  [[nodiscard]] std::int64_t held_channels(const Page& page) const {
    return page.channels ? static_cast<std::int64_t>(page.channels->size()) : shape_.key;
  }
  /// Keys, of the channels that are held, and values of a page that is not encoded: its own memory, which they keep.
  [[nodiscard]] std::pair<at::Tensor, at::Tensor> held(const Page& page) const;
  /// Keys of all channels and values as numbers, decoded if need be.
  [[nodiscard]] std::pair<at::Tensor, at::Tensor> numbers(const Page& page) const;
  /// Brings the views of a head's runs from the given one on up to date.
  void refresh(Head& head, std::size_t from) const;
  /// Sets a view, and notes where it is one to decode.
  static void put_view(Head& head, std::size_t i, const kernels::PageView& view);
  [[nodiscard]] kernels::PageView view(const Run& run) const;
  /// The views of a head; what has to be decoded for it is put into `decoded`.
  [[nodiscard]] std::span<const kernels::PageView> pages(const Head& head, Decoded& decoded) const;
  /// All entries of all rows as padded tensors, for the plain form.
  [[nodiscard]] Entries dense(at::ScalarType type) const;
  [[nodiscard]] bool paged() const { return !live_.k.defined(); }
  [[nodiscard]] bool fused(const at::Tensor& queries, const Call& call) const;

  KvShape shape_;
  std::vector<Row> rows_;
  Live live_;
  std::shared_ptr<const KvPlan> plan_;
  std::int64_t layer_ = 0, layers_ = 1;
  Needs looked_for_;        // by others than the plan
  std::int64_t group_ = 0;  // query heads of a KV head, once queries have come
  double scale_ = 0, observe_seconds_ = 0;
  std::int64_t chunk_ = 0;  // tokens that came last, of the longest row
  bool prompt_finished_ = false;
  std::int64_t protected_ = 0;  // first tokens that the plan does not touch

  struct Watched {
    std::int64_t begin, end, sinks, seen;  ///< tokens; how many had come before the queries
  };
  std::optional<Watched> watched_;
  /// Of n queries [n,Hq,K], turned, of a row, and the lse [Hq,n] of their weights over all that they see.
  void note_watched(Row& row, const float* queries, const float* lse, const std::int64_t* positions,
                    std::int64_t n, const Call& call) const;

  class Layer;
  Needs needs_;  ///< of the plan and of others
  void find_needs();
};

}  // namespace mneme
