// BlockStore: blocks of keys and values that have left the window of one layer, in memory or in a file.
//
// A block never changes, so forks share it. In a file, which has no name and goes with its last block, a bounded number of
// blocks is resident: those read last. Blocks are read by pread, not mapped: so the bytes that are resident are known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

namespace mneme {

class BlockFile;

/// Bytes of neighbouring entries; they go with the last who holds them.
class Block {
 public:
  Block(std::shared_ptr<const std::byte> numbers, std::int64_t bytes, std::int64_t entries);
  Block(std::shared_ptr<BlockFile> file, std::int64_t offset, std::int64_t bytes,
        std::int64_t entries);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  [[nodiscard]] std::int64_t entries() const { return entries_; }
  [[nodiscard]] std::int64_t bytes() const { return bytes_; }
  [[nodiscard]] const BlockFile* file() const { return file_.get(); }  ///< null: in memory
  /// The bytes, which stay while they are held; throws Error(io) where the file cannot be read.
  [[nodiscard]] std::shared_ptr<const std::byte> read() const;

 private:
  std::shared_ptr<const std::byte> numbers_;
  std::shared_ptr<BlockFile> file_;
  std::int64_t offset_ = 0, bytes_, entries_;
};

class BlockStore {
 public:
  struct Options {
    bool disk = false;
    std::int64_t resident = 32;  ///< blocks of the file that are kept in memory
  };
  explicit BlockStore(const Options& options) : options_(options) {}

  /// A block of these bytes; throws Error(io) where the file takes no more.
  [[nodiscard]] std::shared_ptr<const Block> keep(std::shared_ptr<const std::byte> numbers,
                                                  std::int64_t bytes, std::int64_t entries);

 private:
  Options options_;
  std::shared_ptr<BlockFile> file_;
};

/// Bytes of the blocks that are in memory, each counted once, those of files that are resident among them.
[[nodiscard]] std::int64_t resident_bytes(const std::vector<std::shared_ptr<const Block>>& blocks);

/// Vectors that stand for blocks, 8 bits a number and a scale for every 32; forks share them until one side adds.
class VectorTable {
 public:
  VectorTable() = default;
  explicit VectorTable(std::int64_t width) : width_(width) {}

  [[nodiscard]] std::int64_t width() const { return width_; }
  [[nodiscard]] std::int64_t rows() const { return rows_; }
  [[nodiscard]] std::int64_t bytes() const;
  void add(std::span<const float> vector);  ///< [width]
  /// out [rows] = the products of all vectors with `query` [width].
  void products(std::span<const float> query, float* out) const;
  /// use(begin, n, products [M,n]) for the vectors from `begin` on, some at a time, and M queries [M,width].
  void each_part(std::span<const float> queries, std::int64_t M,
                 const std::function<void(std::int64_t, std::int64_t, const float*)>& use) const;
  /// A vector as it reads back: [width].
  [[nodiscard]] std::vector<float> row(std::int64_t i) const;
  /// The bytes of a row, as `add_bytes` takes them.
  [[nodiscard]] std::span<const std::uint8_t> row_bytes(std::int64_t i) const;
  void add_bytes(std::span<const std::uint8_t> row);
  [[nodiscard]] std::int64_t bytes_of_row() const;

 private:
  static constexpr std::int64_t kRowsOfPart = 256;
  [[nodiscard]] std::int64_t padded() const { return (width_ + 31) / 32 * 32; }
  std::int64_t width_ = 0, rows_ = 0;
  std::vector<std::shared_ptr<std::vector<std::uint8_t>>> parts_;
};

}  // namespace mneme
