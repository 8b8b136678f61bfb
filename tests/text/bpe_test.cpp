#include "mneme/text/bpe.h"

#include "mneme/core/error.h"

#include <chrono>
#include <gtest/gtest.h>
#include <random>
#include <set>
#include <thread>

namespace mneme::text {
namespace {

BpeParts byte_parts() {
  BpeParts parts;
  for (int byte = 0; byte < 256; ++byte) parts.pieces.emplace_back(1, static_cast<char>(byte));
  return parts;
}

void add_merge(BpeParts& parts, std::int32_t left, std::int32_t right) {
  const auto joined =
      parts.pieces[static_cast<std::size_t>(left)] + parts.pieces[static_cast<std::size_t>(right)];
  if (std::find(parts.pieces.begin(), parts.pieces.end(), joined) == parts.pieces.end())
    parts.pieces.push_back(joined);
  parts.merges.emplace_back(left, right);
}

std::vector<std::int32_t> encode(const Bpe& bpe, std::string_view word) {
  std::vector<std::int32_t> ids;
  const auto room = bpe.workspace();
  bpe.encode_word(word, ids, *room);
  return ids;
}

// The definition, word for word: look at all pairs, join the first-listed leftmost one, begin
// again.
std::vector<std::int32_t> by_definition(const BpeParts& parts, std::string_view word) {
  std::vector<std::string> symbols;
  for (const char c : word) symbols.emplace_back(1, c);
  while (true) {
    std::size_t best_rank = parts.merges.size(), best = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      for (std::size_t rank = 0; rank < best_rank; ++rank) {
        const auto [left, right] = parts.merges[rank];
        if (parts.pieces[static_cast<std::size_t>(left)] == symbols[i] &&
            parts.pieces[static_cast<std::size_t>(right)] == symbols[i + 1]) {
          best_rank = rank;
          best = i;
        }
      }
    }
    if (best_rank == parts.merges.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  std::vector<std::int32_t> ids;
  for (const auto& symbol : symbols) {
    ids.push_back(static_cast<std::int32_t>(
        std::find(parts.pieces.begin(), parts.pieces.end(), symbol) - parts.pieces.begin()));
  }
  return ids;
}

TEST(Bpe, ByHand) {
  auto parts = byte_parts();
  add_merge(parts, 'l', 'o');  // 256
  add_merge(parts, 256, 'w');  // 257
  add_merge(parts, 'e', 'r');  // 258
  const Bpe bpe(parts);
  EXPECT_EQ(encode(bpe, "lower"), (std::vector<std::int32_t>{257, 258}));
  EXPECT_EQ(encode(bpe, "low"), (std::vector<std::int32_t>{257}));
  EXPECT_EQ(encode(bpe, "wol"), (std::vector<std::int32_t>{'w', 'o', 'l'}));
  EXPECT_EQ(encode(bpe, ""), (std::vector<std::int32_t>{}));
  EXPECT_EQ(bpe.id_of("low"), 257);
  EXPECT_EQ(bpe.id_of("lowx"), std::nullopt);
  EXPECT_EQ(bpe.piece(258), "er");
}

TEST(Bpe, AnEntryThatItsOwnBytesDoNotGiveIsNotTaken) {
  auto parts = byte_parts();
  add_merge(parts, 'a', 'b');  // 256, joined first
  add_merge(parts, 'b', 'c');  // 257
  add_merge(parts, 'a', 257);  // 258 "abc", which "ab" + "c" never becomes
  EXPECT_EQ(encode(Bpe(parts), "abc"), (std::vector<std::int32_t>{256, 'c'}));
  parts.ignore_merges = true;
  EXPECT_EQ(encode(Bpe(parts), "abc"), (std::vector<std::int32_t>{258}));
  parts.control.resize(parts.pieces.size());
  parts.control[258] = true;  // plain text must not make a control token
  EXPECT_EQ(encode(Bpe(parts), "abc"), (std::vector<std::int32_t>{256, 'c'}));
}

// Random merge lists, also such as no training would give, on words below and above the length
// where the method changes.
TEST(Bpe, EqualsTheDefinition) {
  std::mt19937 random(3);
  for (int vocabulary = 0; vocabulary < 20; ++vocabulary) {
    auto parts = byte_parts();
    for (int i = 0; i < 60; ++i) {
      const auto any = [&] {
        const auto extra = parts.pieces.size() - 256;
        return static_cast<std::int32_t>(extra > 0 && random() % 2 ? 256 + random() % extra
                                                                   : 'a' + random() % 3);
      };
      const auto left = any(), right = any();
      if (parts.pieces[static_cast<std::size_t>(left)].size() +
                  parts.pieces[static_cast<std::size_t>(right)].size() <=
              12 &&
          std::find(parts.merges.begin(), parts.merges.end(), std::pair(left, right)) ==
              parts.merges.end()) {
        add_merge(parts, left, right);
      }
    }
    std::shuffle(parts.merges.begin(), parts.merges.end(), random);
    const Bpe bpe(parts);
    for (const std::size_t length : {1, 2, 3, 5, 8, 13, 21, 34, 47, 48, 49, 50, 90, 200}) {
      for (int round = 0; round < 5; ++round) {
        std::string word;
        while (word.size() < length) word += static_cast<char>('a' + random() % 3);
        ASSERT_EQ(encode(bpe, word), by_definition(parts, word)) << word;
        ASSERT_EQ(encode(bpe, word), by_definition(parts, word)) << word << ", the second time";
      }
    }
  }
}

TEST(Bpe, BytesWithoutATokenAreLeftOutAndCounted) {
  auto parts = byte_parts();
  add_merge(parts, 'a', 'b');  // 256
  parts.pieces[1].clear();
  const Bpe bpe(parts);
  EXPECT_EQ(bpe.lost_bytes("a\x01"
                           "b\x01"),
            2);
  EXPECT_EQ(encode(bpe,
                   "a\x01"
                   "b\x01"
                   "c"),
            (std::vector<std::int32_t>{256, 'c'}));
  EXPECT_EQ(encode(bpe, "\x01"), (std::vector<std::int32_t>{}));
  EXPECT_EQ(encode(bpe, "x" + std::string(100, '\x01') + "y"),
            (std::vector<std::int32_t>{'x', 'y'}));

  parts.unknown = '?';
  EXPECT_EQ(Bpe(parts).lost_bytes("\x01"), 0);
  EXPECT_EQ(encode(Bpe(parts),
                   "a\x01\x01"
                   "b"),
            (std::vector<std::int32_t>{'a', '?', '?', 'b'}));
  parts.fuse_unknown = true;
  EXPECT_EQ(encode(Bpe(parts),
                   "a\x01\x01"
                   "b"),
            (std::vector<std::int32_t>{'a', '?', 'b'}));
}

TEST(Bpe, AHugeWordIsNotQuadratic) {
  auto parts = byte_parts();
  add_merge(parts, 'a', 'a');
  for (std::int32_t id = 256; id < 260; ++id) add_merge(parts, id, id);  // up to 32 bytes
  const Bpe bpe(parts);
  const auto seconds = [&](std::size_t n) {
    const std::string word(n, 'a');
    const auto start = std::chrono::steady_clock::now();
    const auto ids = encode(bpe, word);
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    EXPECT_EQ(ids.size(), n / 32);
    return spent.count();
  };
  seconds(1 << 16);
  const double small = seconds(1 << 18),
               large = seconds(1 << 21);  // 8 times: quadratic would be 64
  EXPECT_LT(large, 30 * small);
}

TEST(Bpe, ThreadsShareOne) {
  auto parts = byte_parts();
  add_merge(parts, 'a', 'b');
  add_merge(parts, 256, 'c');
  const Bpe bpe(parts);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        if (encode(bpe, "abc") != std::vector<std::int32_t>{257}) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Bpe, RefusesMergesThatLeadNowhere) {
  auto parts = byte_parts();
  parts.merges.emplace_back('a', 'b');
  EXPECT_THROW(Bpe{parts}, Error);
  parts.merges = {{'a', 9999}};
  EXPECT_THROW(Bpe{parts}, Error);
  parts.merges = {{-1, 'a'}};
  EXPECT_THROW(Bpe{parts}, Error);
}

TEST(Bpe, SpellingOfBytes) {
  EXPECT_EQ(bytes_of_spelling("\u0120the"), " the");
  EXPECT_EQ(bytes_of_spelling("\u010a"), "\n");
  EXPECT_EQ(bytes_of_spelling("\u00c3\u00a9"), "\u00e9");
  EXPECT_EQ(bytes_of_spelling("\u4e2d"), "\u4e2d");  // no byte is spelled so: it stands for itself
  std::set<std::string> seen;
  for (char32_t c = 0x21; c < 0x144; ++c) {
    std::string utf8;
    if (c < 0x80) {
      utf8 = static_cast<char>(c);
    } else {
      utf8 = {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
    }
    const auto bytes = bytes_of_spelling(utf8);
    if (bytes.size() == 1) seen.insert(bytes);
  }
  EXPECT_EQ(seen.size(), 256u);
}

}  // namespace
}  // namespace mneme::text
