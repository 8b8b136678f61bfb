// Bpe: byte-level byte-pair encoding. A word starts as its bytes; of all neighbouring pairs that
// the merge list knows, the one listed first, leftmost if there are several, is joined again and
// again until none is left.
//
// source    Sennrich et al. 2016, arXiv:1508.07909; bytes as the base alphabet: Radford et al. 2019
//           (GPT-2)
// cost      O(n log n) for a word of n bytes; a word that is one entry of the vocabulary is a
//           look-up
#pragma once

#include "mneme/text/piece_table.h"
#include "mneme/text/subword_model.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme::text {

/// GPT-2's spelling of bytes in vocabulary files: printable Latin-1 stands for itself, every other
/// byte for a character from U+0100 on (a blank is U+0120). Gives back the bytes; a piece with any
/// other character stands for its own UTF-8.
std::string bytes_of_spelling(std::string_view spelled);

/// What a byte-level BPE is made of.
struct BpeParts {
  std::vector<std::string> pieces;  ///< bytes by id; an empty one is a hole
  std::vector<std::pair<std::int32_t, std::int32_t>>
      merges;                           ///< pairs of ids, first come first joined
  std::optional<std::int32_t> unknown;  ///< stands for bytes that the vocabulary lacks
  bool fuse_unknown = false;            ///< one for a run of them
  bool ignore_merges = false;           ///< a word that is an entry is taken whole
  std::vector<bool> control;            ///< by id: never made from plain text by ignore_merges
};

class Bpe final : public SubwordModel {
 public:
  /// Throws `corrupt` if a merge names ids outside the vocabulary or joins to no entry.
  explicit Bpe(BpeParts parts);
  ~Bpe() override;

  [[nodiscard]] std::unique_ptr<Workspace> workspace() const override;
  /// Leaves out the bytes that `lost_bytes` counts, as the reference implementations do; their
  /// neighbours may join.
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids,
                   Workspace& room) const override;
  [[nodiscard]] std::string_view piece(std::int32_t id) const override { return table_.piece(id); }
  [[nodiscard]] std::optional<std::int32_t> id_of(std::string_view piece) const override {
    return table_.id_of(piece);
  }
  [[nodiscard]] std::int64_t size() const override { return table_.size(); }
  [[nodiscard]] std::int64_t lost_bytes(std::string_view text) const override;
  void append_text(std::int32_t id, bool first, std::string& text) const override;
  [[nodiscard]] bool puts_spaces() const override { return false; }
  void describe(std::string& description) const override;

 private:
  struct MergeSlot {
    std::uint64_t pair;
    std::uint32_t rank;
    std::int32_t merged;
  };
  struct Room;

  [[nodiscard]] const MergeSlot* find_merge(std::int32_t left, std::int32_t right) const noexcept;
  [[nodiscard]] std::uint32_t rank_of(std::int32_t left, std::int32_t right) const noexcept;
  void merge_short(std::string_view word, std::vector<std::int32_t>& ids) const;
  void merge_long(std::string_view word, std::vector<std::int32_t>& ids, Room& room) const;
  void append_without_unknown_runs(const std::int32_t* symbols, std::size_t n,
                                   std::vector<std::int32_t>& ids) const;
  void merge(std::string_view word, std::vector<std::int32_t>& ids, Room& room) const;
  [[nodiscard]] std::int32_t symbol_of(char byte) const noexcept;
  [[nodiscard]] bool loses(char byte) const noexcept;
  /// Whether encoding the entry's own bytes gives the entry: true for nearly all, but nothing in
  /// the format says so.
  [[nodiscard]] bool encodes_to_itself(std::int32_t id, std::string_view word) const;

  PieceTable table_;
  std::vector<std::pair<std::int32_t, std::int32_t>> merges_;
  std::vector<MergeSlot> slots_;
  std::array<std::int32_t, 256> byte_ids_{};
  std::vector<std::uint32_t> byte_pair_ranks_;  // [256 * 256], the first look-ups of every word
  std::optional<std::int32_t> unknown_;
  bool fuse_unknown_, ignore_merges_;
  bool loses_some_ = false;
  std::vector<bool> control_;
  /// By id: 0 not yet known, 1 yes, 2 no. Filled as words come by; every thread writes the same
  /// value.
  mutable std::unique_ptr<std::atomic<std::uint8_t>[]> whole_;
};

}  // namespace mneme::text
