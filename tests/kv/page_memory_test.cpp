#include "mneme/kv/page_memory.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <gtest/gtest.h>
#include <random>
#include <thread>
#include <vector>

namespace mneme {
namespace {

struct Piece {
  std::shared_ptr<std::byte> memory;
  std::int64_t bytes;
  int mark;
};

Piece marked(std::int64_t bytes, int mark) {
  Piece piece{page_memory(bytes), bytes, mark};
  std::memset(piece.memory.get(), mark, static_cast<std::size_t>(bytes));
  return piece;
}

void expect_untouched(const Piece& piece) {
  const auto* begin = piece.memory.get();
  EXPECT_TRUE(std::all_of(begin, begin + piece.bytes,
                          [&](std::byte b) { return b == static_cast<std::byte>(piece.mark); }))
      << "a piece of " << piece.bytes << " bytes";
}

TEST(PageMemory, PiecesLieApartAndAreGivenBack) {
  const auto before = page_memory_blocks();
  std::mt19937 generator(3);
  std::vector<Piece> held;
  for (int round = 0; round < 4000; ++round) {
    if (held.size() > 300 || (!held.empty() && generator() % 3 == 0)) {
      const auto which = generator() % held.size();
      expect_untouched(held[which]);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(which));
    }
    constexpr std::int64_t kSizes[] = {0, 1, 63, 64, 65, 5120, 16384, 131072, 131073, 5'000'000};
    held.push_back(marked(kSizes[generator() % (round % 50 == 0 ? 10 : 8)], round % 251));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(held.back().memory.get()) % 64, 0u);
  }
  for (const auto& piece : held) expect_untouched(piece);
  held.clear();
  EXPECT_EQ(page_memory_blocks(), before);
}

TEST(PageMemory, SmallPiecesShareBlocks) {
  constexpr std::int64_t kBytes = 5120;
  const auto before = page_memory_blocks();
  std::vector<Piece> held;
  for (int i = 0; i < 1000; ++i) held.push_back(marked(kBytes, 1));
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_GE(page_memory_blocks() - before, 1000 * kBytes - (std::int64_t{2} << 20));
#endif
  EXPECT_LE(page_memory_blocks() - before, 1000 * kBytes + (std::int64_t{2} << 20));
  // What is given back is used again before there are more blocks.
  const auto most = page_memory_blocks();
  held.resize(500);
  for (int i = 0; i < 500; ++i) held.push_back(marked(kBytes, 2));
  EXPECT_EQ(page_memory_blocks(), most);
  held.clear();
  EXPECT_EQ(page_memory_blocks(), before);
}

TEST(PageMemory, ObjectsLieInBlocksToo) {
  struct Object {
    std::byte numbers[1100];
  };
  const auto before = page_memory_blocks();
  std::vector<std::shared_ptr<Object>> held;
  for (int i = 0; i < 3000; ++i)
    held.push_back(std::allocate_shared<Object>(PageAllocator<Object>()));
  EXPECT_LE(page_memory_blocks() - before, std::int64_t{3000} * 1152 + (std::int64_t{2} << 20));
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_GT(page_memory_blocks(), before);
#endif
  held.clear();
  EXPECT_EQ(page_memory_blocks(), before);
}

TEST(PageMemory, ThreadsTakeAndGiveBackAtOnce) {
  const auto before = page_memory_blocks();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      std::mt19937 generator(static_cast<unsigned>(t));
      std::vector<Piece> held;
      for (int round = 0; round < 2000; ++round) {
        if (held.size() > 50) {
          expect_untouched(held.front());
          held.erase(held.begin());
        }
        held.push_back(marked(generator() % 2 ? 5120 : 2560, t + 1));
      }
      for (const auto& piece : held) expect_untouched(piece);
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(page_memory_blocks(), before);
}

}  // namespace
}  // namespace mneme
