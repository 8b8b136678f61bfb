#include "mneme/text/bpe.h"

#include "mneme/core/error.h"
#include "mneme/text/unicode.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>

namespace mneme::text {

namespace {

constexpr std::uint32_t kNoMerge = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint64_t kNoPair = std::numeric_limits<std::uint64_t>::max();
/// Up to this many bytes a scan over all pairs beats a heap.
constexpr std::size_t kShortWord = 48;

enum Whole : std::uint8_t { kNotYetKnown = 0, kWhole = 1, kInParts = 2 };

/// Byte by code point of GPT-2's spelling, -1 where no byte is spelled so.
const std::array<std::int16_t, 0x144>& byte_by_spelling() {
  static const auto table = [] {
    std::array<std::int16_t, 0x144> bytes;
    bytes.fill(-1);
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      bytes[static_cast<std::size_t>(printable ? byte : next++)] = static_cast<std::int16_t>(byte);
    }
    return bytes;
  }();
  return table;
}

std::uint64_t pair_key(std::int32_t left, std::int32_t right) noexcept {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

std::size_t pair_hash(std::uint64_t key) noexcept {
  key *= 0x9E3779B97F4A7C15u;
  return static_cast<std::size_t>(key ^ key >> 32);
}

}  // namespace

std::string bytes_of_spelling(std::string_view spelled) {
  const auto& table = byte_by_spelling();
  std::string bytes;
  bytes.reserve(spelled.size());
  for (std::size_t at = 0; at < spelled.size();) {
    const auto step = next_code_point(spelled, at);
    if (!step.valid || step.code_point >= table.size() || table[step.code_point] < 0)
      return std::string(spelled);
    bytes.push_back(static_cast<char>(table[step.code_point]));
    at += step.bytes;
  }
  return bytes;
}

/// A word as a linked list of symbols, and the heap of pairs that may be joined. Entries of pairs
/// that have changed since stay in the heap and are passed over.
struct Bpe::Room final : Workspace {
  struct Symbol {
    std::int32_t id;
    std::uint32_t rank;  // of the pair (this, next)
    std::uint32_t previous, next;
  };
  std::vector<Symbol> symbols;
  std::vector<std::uint64_t> heap;  // rank << 32 | position, smallest first
  std::vector<std::int32_t> merged;
};

Bpe::Bpe(BpeParts parts)
    : table_(parts.pieces),
      merges_(std::move(parts.merges)),
      slots_(std::bit_ceil(std::max<std::size_t>(16, 2 * merges_.size())),
             MergeSlot{kNoPair, kNoMerge, -1}),
      unknown_(parts.unknown),
      fuse_unknown_(parts.fuse_unknown),
      ignore_merges_(parts.ignore_merges),
      control_(std::move(parts.control)),
      whole_(std::make_unique<std::atomic<std::uint8_t>[]>(parts.pieces.size())) {
  control_.resize(parts.pieces.size());
  for (std::size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    const char c = static_cast<char>(byte);
    byte_ids_[byte] = table_.find({&c, 1});
    loses_some_ = loses_some_ || loses(c);
  }
  const std::size_t mask = slots_.size() - 1;
  std::string joined;
  for (std::size_t rank = 0; rank < merges_.size(); ++rank) {
    const auto [left, right] = merges_[rank];
    const auto outside = [&](std::int32_t id) { return id < 0 || id >= table_.size(); };
    if (outside(left) || outside(right)) {
      throw Error(Errc::corrupt, "BPE merge " + std::to_string(rank) +
                                     " names an id outside the vocabulary of " +
                                     std::to_string(table_.size()));
    }
    joined.assign(table_.piece(left)).append(table_.piece(right));
    const auto merged = table_.find(joined);
    if (merged < 0) {
      throw Error(Errc::corrupt, "BPE merge " + std::to_string(rank) + " joins \"" +
                                     std::string(table_.piece(left)) + "\" and \"" +
                                     std::string(table_.piece(right)) +
                                     "\" to a piece that the vocabulary lacks");
    }
    const auto key = pair_key(left, right);
    std::size_t at = pair_hash(key) & mask;
    while (slots_[at].pair != kNoPair && slots_[at].pair != key) at = (at + 1) & mask;
    slots_[at] = {key, static_cast<std::uint32_t>(rank),
                  merged};  // listed twice: the later rank counts
  }
  byte_pair_ranks_.resize(byte_ids_.size() * byte_ids_.size(), kNoMerge);
  for (std::size_t left = 0; left < byte_ids_.size(); ++left) {
    for (std::size_t right = 0; right < byte_ids_.size(); ++right) {
      if (byte_ids_[left] >= 0 && byte_ids_[right] >= 0) {
        byte_pair_ranks_[left << 8 | right] = rank_of(byte_ids_[left], byte_ids_[right]);
      }
    }
  }
}

Bpe::~Bpe() = default;

std::unique_ptr<SubwordModel::Workspace> Bpe::workspace() const { return std::make_unique<Room>(); }

const Bpe::MergeSlot* Bpe::find_merge(std::int32_t left, std::int32_t right) const noexcept {
  const auto key = pair_key(left, right);
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t at = pair_hash(key) & mask; slots_[at].pair != kNoPair; at = (at + 1) & mask) {
    if (slots_[at].pair == key) return &slots_[at];
  }
  return nullptr;
}

std::uint32_t Bpe::rank_of(std::int32_t left, std::int32_t right) const noexcept {
  const auto* slot = find_merge(left, right);
  return slot ? slot->rank : kNoMerge;
}

std::int32_t Bpe::symbol_of(char byte) const noexcept {
  const auto id = byte_ids_[static_cast<unsigned char>(byte)];
  return id >= 0 ? id : *unknown_;
}

bool Bpe::loses(char byte) const noexcept {
  return !unknown_ && byte_ids_[static_cast<unsigned char>(byte)] < 0;
}

std::int64_t Bpe::lost_bytes(std::string_view text) const {
  return loses_some_
             ? std::count_if(text.begin(), text.end(), [this](char byte) { return loses(byte); })
             : 0;
}

void Bpe::append_without_unknown_runs(const std::int32_t* symbols, std::size_t n,
                                      std::vector<std::int32_t>& ids) const {
  if (!unknown_ || !fuse_unknown_) {
    ids.insert(ids.end(), symbols, symbols + n);
    return;
  }
  for (std::size_t i = 0; i < n; ++i) {
    if (i > 0 && symbols[i] == *unknown_ && symbols[i - 1] == *unknown_) continue;
    ids.push_back(symbols[i]);
  }
}

void Bpe::merge_short(std::string_view word, std::vector<std::int32_t>& ids) const {
  std::int32_t symbols[kShortWord];
  std::uint32_t ranks[kShortWord];  // ranks[i]: of the pair (i, i + 1)
  std::size_t n = word.size();
  for (std::size_t i = 0; i < n; ++i) {
    symbols[i] = symbol_of(word[i]);
    ranks[i] =
        i + 1 == n
            ? kNoMerge
            : byte_pair_ranks_[static_cast<std::size_t>(static_cast<unsigned char>(word[i])) << 8 |
                               static_cast<unsigned char>(word[i + 1])];
  }
  while (n > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < n; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == kNoMerge) break;
    symbols[best] = find_merge(symbols[best], symbols[best + 1])->merged;
    std::memmove(symbols + best + 1, symbols + best + 2, (n - best - 2) * sizeof *symbols);
    std::memmove(ranks + best, ranks + best + 1, (n - best - 1) * sizeof *ranks);
    --n;
    if (best + 1 < n) ranks[best] = rank_of(symbols[best], symbols[best + 1]);
    if (best > 0) ranks[best - 1] = rank_of(symbols[best - 1], symbols[best]);
  }
  append_without_unknown_runs(symbols, n, ids);
}

void Bpe::merge_long(std::string_view word, std::vector<std::int32_t>& ids, Room& room) const {
  constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
  auto& symbols = room.symbols;
  auto& heap = room.heap;
  const auto later = std::greater<std::uint64_t>();
  symbols.clear();
  heap.clear();
  const auto n = static_cast<std::uint32_t>(word.size());
  symbols.reserve(n);
  for (std::uint32_t i = 0; i < n; ++i) {
    const auto rank =
        i + 1 == n
            ? kNoMerge
            : byte_pair_ranks_[static_cast<std::size_t>(static_cast<unsigned char>(word[i])) << 8 |
                               static_cast<unsigned char>(word[i + 1])];
    symbols.push_back(
        {symbol_of(word[i]), rank, i == 0 ? kNone : i - 1, i + 1 == n ? kNone : i + 1});
    if (rank != kNoMerge) heap.push_back(static_cast<std::uint64_t>(rank) << 32 | i);
  }
  std::make_heap(heap.begin(), heap.end(), later);
  const auto offer = [&](std::uint32_t at) {
    auto& symbol = symbols[at];
    symbol.rank = symbol.next == kNone ? kNoMerge : rank_of(symbol.id, symbols[symbol.next].id);
    if (symbol.rank == kNoMerge) return;
    heap.push_back(static_cast<std::uint64_t>(symbol.rank) << 32 | at);
    std::push_heap(heap.begin(), heap.end(), later);
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const auto entry = heap.back();
    heap.pop_back();
    const auto at = static_cast<std::uint32_t>(entry);
    auto& symbol = symbols[at];
    if (symbol.rank != entry >> 32) continue;
    auto& gone = symbols[symbol.next];
    symbol.id = find_merge(symbol.id, gone.id)->merged;
    gone.rank = kNoMerge;
    symbol.next = gone.next;
    if (symbol.next != kNone) symbols[symbol.next].previous = at;
    offer(at);
    if (symbol.previous != kNone) offer(symbol.previous);
  }
  room.merged.clear();
  for (std::uint32_t at = 0; at != kNone; at = symbols[at].next)
    room.merged.push_back(symbols[at].id);
  append_without_unknown_runs(room.merged.data(), room.merged.size(), ids);
  // One huge word must not hold its memory for the rest of the text.
  constexpr std::size_t kKept = 1 << 16;
  if (symbols.capacity() > kKept) room = Room();
}

bool Bpe::encodes_to_itself(std::int32_t id, std::string_view word) const {
  auto& known = whole_[static_cast<std::size_t>(id)];
  auto whole = known.load(std::memory_order_relaxed);
  if (whole == kNotYetKnown) {
    std::vector<std::int32_t> ids;
    Room room;
    merge(word, ids, room);
    whole = ids.size() == 1 && ids[0] == id ? kWhole : kInParts;
    known.store(whole, std::memory_order_relaxed);
  }
  return whole == kWhole;
}

void Bpe::encode_word(std::string_view word, std::vector<std::int32_t>& ids,
                      Workspace& room) const {
  if (word.size() <= table_.longest_bytes()) {
    const auto id = table_.find(word);
    if (id >= 0 &&
        (ignore_merges_ ? !control_[static_cast<std::size_t>(id)] : encodes_to_itself(id, word))) {
      ids.push_back(id);
      return;
    }
  }
  if (loses_some_ &&
      std::any_of(word.begin(), word.end(), [this](char byte) { return loses(byte); })) {
    std::string rest;
    std::copy_if(word.begin(), word.end(), std::back_inserter(rest),
                 [this](char byte) { return !loses(byte); });
    return merge(rest, ids, static_cast<Room&>(room));
  }
  merge(word, ids, static_cast<Room&>(room));
}

void Bpe::merge(std::string_view word, std::vector<std::int32_t>& ids, Room& room) const {
  if (word.size() <= kShortWord) {
    merge_short(word, ids);
  } else {
    merge_long(word, ids, room);
  }
}

void Bpe::append_text(std::int32_t id, bool, std::string& text) const {
  text.append(table_.piece(id));
}

void Bpe::describe(std::string& description) const {
  description += "bpe(";
  description += fuse_unknown_ ? '1' : '0';
  description += ignore_merges_ ? '1' : '0';
  description += ',' + std::to_string(unknown_.value_or(-1)) + ')';
  for (std::int64_t id = 0; id < size(); ++id) {
    const auto bytes = piece(static_cast<std::int32_t>(id));
    description += std::to_string(bytes.size()) + ':';
    description += bytes;
  }
  for (const auto& [left, right] : merges_)
    description += std::to_string(left) + '+' + std::to_string(right) + ',';
}

}  // namespace mneme::text
