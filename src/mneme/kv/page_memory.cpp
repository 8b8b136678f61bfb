#include "mneme/kv/page_memory.h"

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
  std::vector<std::byte*> free;
  std::size_t pieces = 0;
};

class Pool {
 public:
  Pool() { spare_.reserve(kMostSpare); }

  std::byte* take(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    auto& with_room = with_room_[bytes];
    if (with_room.empty()) with_room.insert(add_block(bytes));
    auto* begin = *with_room.begin();
    auto& free = blocks_.at(begin).free;
    auto* piece = free.back();
    free.pop_back();
    if (free.empty()) with_room.erase(begin);
    return piece;
  }

  void give_back(std::byte* piece, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto block = std::prev(blocks_.upper_bound(piece));
    auto& [free, pieces] = block->second;
    free.push_back(piece);
    if (free.size() < pieces) {
      with_room_[bytes].insert(block->first);
      return;
    }
    with_room_[bytes].erase(block->first);
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
    auto& [free, pieces] = blocks_[begin];
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
  const auto size = static_cast<std::size_t>(bytes);
  return {take_page_memory(size),
          [size](std::byte* memory) { give_back_page_memory(memory, size); }};
}

std::int64_t page_memory_blocks() { return static_cast<std::int64_t>(pool().blocks() * kBlock); }

}  // namespace mneme
