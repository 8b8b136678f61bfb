#include "mneme/kv/page_memory.h"

#include "mneme/core/error.h"
#include "mneme/core/large_pages.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <vector>

namespace mneme {
namespace {

constexpr std::size_t kBlock = kLargePage;
constexpr std::size_t kLine = 64;

// Under a sanitizer every piece is an allocation of its own, so that it is seen who reads one that was given back.
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kMostPiece = 0;
#else
constexpr std::size_t kMostPiece = kBlock / 16;
#endif

// Empty blocks that wait for new pieces: pages of a state that is gone are wanted again by the next.
constexpr std::size_t kMostSpare = 16;

// A block of pieces of one size.
struct MemoryBlock {
  std::vector<std::byte*> free;  // with room for all of them
  std::size_t pieces = 0;
  std::set<std::byte*>::node_type
      full;  // the block's place among those with room, while it has none
};

class Pool {
 public:
  Pool() { spare_.reserve(kMostSpare); }

  std::byte* take(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    auto& with_room = with_room_[bytes];
    if (with_room.empty()) with_room.insert(add_block(bytes));
    auto* begin = *with_room.begin();
    auto& block = blocks_.at(begin);
    auto* piece = block.free.back();
    block.free.pop_back();
    if (block.free.empty()) block.full = with_room.extract(with_room.begin());
    return piece;
  }

  /// Allocates nothing: destructors call it.
  void give_back(std::byte* piece, std::size_t bytes) noexcept {
    const std::lock_guard lock(mutex_);
    const auto block = std::prev(blocks_.upper_bound(piece));
    auto& with_room = with_room_.find(bytes)->second;
    auto& [free, pieces, full] = block->second;
    free.push_back(piece);
    if (full) with_room.insert(std::move(full));
    if (free.size() < pieces) return;
    with_room.erase(block->first);
    if (spare_.size() < kMostSpare) {
      spare_.push_back(block->first);
    } else {
      free_large_pages(block->first, kBlock);
    }
    blocks_.erase(block);
  }

  std::size_t blocks() {
    const std::lock_guard lock(mutex_);
    return blocks_.size();
  }

 private:
  std::byte* add_block(std::size_t bytes) {
    auto* begin = spare_.empty() ? allocate_large_pages(kBlock) : spare_.back();
    if (!spare_.empty()) spare_.pop_back();
    auto& [free, pieces, full] = blocks_[begin];
    pieces = kBlock / bytes;
    free.reserve(pieces);
    for (auto i = pieces; i > 0; --i) free.push_back(begin + (i - 1) * bytes);
    return begin;
  }

  std::mutex mutex_;
  std::map<std::byte*, MemoryBlock> blocks_;  // by where they begin
  std::map<std::size_t, std::set<std::byte*>>
      with_room_;  // by the size of their pieces; the lowest fill up first
  std::vector<std::byte*> spare_;
};

std::size_t whole_lines(std::size_t bytes) {
  return std::max<std::size_t>(1, (bytes + kLine - 1) / kLine) * kLine;
}

// Has a shared_ptr count its copies in the line behind the memory itself, and gives back both when nobody counts any more:
// so there is nothing to allocate beside it.
template <class T>
struct CountBehind {
  using value_type = T;
  std::byte* memory;
  std::size_t before_count;

  CountBehind(std::byte* memory, std::size_t before_count)
      : memory(memory), before_count(before_count) {}
  template <class U>
  CountBehind(const CountBehind<U>& other) noexcept  // NOLINT(google-explicit-constructor)
      : memory(other.memory), before_count(other.before_count) {}
  [[nodiscard]] T* allocate(std::size_t n) {
    static_assert(sizeof(T) <= kLine && alignof(T) <= kLine);
    MNEME_ASSERT(n == 1);
    return reinterpret_cast<T*>(memory + before_count);
  }
  void deallocate(T*, std::size_t) noexcept { give_back_page_memory(memory, before_count + kLine); }
  bool operator==(const CountBehind&) const = default;
};

// Never destroyed: pages may outlive every other static object.
Pool& pool() {
  static auto* const the = new Pool;
  return *the;
}

}  // namespace

std::byte* take_page_memory(std::size_t bytes) {
  const auto size = whole_lines(bytes);
  return size > kMostPiece ? allocate_aligned(kLine, size) : pool().take(size);
}

void give_back_page_memory(std::byte* memory, std::size_t bytes) noexcept {
  const auto size = whole_lines(bytes);
  if (size > kMostPiece) {
    std::free(memory);
  } else {
    pool().give_back(memory, size);
  }
}

std::shared_ptr<std::byte> page_memory(std::int64_t bytes) {
  const auto before_count = whole_lines(static_cast<std::size_t>(bytes));
  auto* memory = take_page_memory(before_count + kLine);
  return {memory, [](std::byte*) {}, CountBehind<std::byte>{memory, before_count}};
}

std::int64_t page_memory_blocks() { return static_cast<std::int64_t>(pool().blocks() * kBlock); }

}  // namespace mneme
