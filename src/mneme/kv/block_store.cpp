#include "mneme/kv/block_store.h"

#include "mneme/core/error.h"
#include "mneme/core/sole_owner.h"
#include "mneme/kernels/quantized.h"
#include "mneme/kv/page_memory.h"

#include <ATen/ATen.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fmt/format.h>
#include <list>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <unistd.h>
#include <unordered_map>

namespace mneme {

/// A file without a name, and the blocks of it that were read last.
class BlockFile {
 public:
  explicit BlockFile(std::int64_t resident) : most_resident_(resident) {
    std::error_code failed;
    auto folder = std::filesystem::temp_directory_path(failed);
    if (failed) folder = "/tmp";
    auto name = (folder / "mneme-blocks-XXXXXX").string();
    file_ = ::mkstemp(name.data());
    if (file_ < 0) {
      throw Error(Errc::io, fmt::format("no file for keys and values can be made in {}: {}; set "
                                        "TMPDIR to a folder that can be written",
                                        folder.string(), std::strerror(errno)));
    }
    ::unlink(name.c_str());
  }
  ~BlockFile() { ::close(file_); }
  BlockFile(const BlockFile&) = delete;
  BlockFile& operator=(const BlockFile&) = delete;

  /// Where the bytes were written.
  std::int64_t write(const std::byte* from, std::int64_t bytes) {
    std::int64_t offset = 0;
    {
      const std::lock_guard lock(mutex_);
      auto& free = free_[bytes];
      if (free.empty()) {
        offset = end_;
        end_ += bytes;
      } else {
        offset = free.back();
        free.pop_back();
      }
    }
    for (std::int64_t done = 0; done < bytes;) {
      const auto n =
          ::pwrite(file_, from + done, static_cast<std::size_t>(bytes - done), offset + done);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        const auto* why = std::strerror(n < 0 ? errno : ENOSPC);
        give_back(offset, bytes);
        throw Error(Errc::io, fmt::format("the temporary file of keys and values takes no more at "
                                          "{} bytes: {}; set TMPDIR to a folder with more room",
                                          offset, why));
      }
      done += n;
    }
    return offset;
  }

  std::shared_ptr<const std::byte> read(const Block* block, std::int64_t offset,
                                        std::int64_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      if (const auto at = by_block_.find(block); at != by_block_.end()) {
        order_.splice(order_.begin(), order_, at->second);
        return at->second->numbers;
      }
    }
    auto numbers = page_memory(bytes);
    for (std::int64_t done = 0; done < bytes;) {
      const auto n = ::pread(file_, numbers.get() + done, static_cast<std::size_t>(bytes - done),
                             offset + done);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        throw Error(Errc::io,
                    fmt::format("the temporary file of keys and values cannot be read at {}: {}",
                                offset, n < 0 ? std::strerror(errno) : "it ends there"));
      }
      done += n;
    }
    const std::lock_guard lock(mutex_);
    if (by_block_.contains(block)) return by_block_.at(block)->numbers;  // another thread was first
    order_.push_front({block, numbers, bytes});
    by_block_[block] = order_.begin();
    resident_bytes_ += bytes;
    while (static_cast<std::int64_t>(order_.size()) > most_resident_) {
      resident_bytes_ -= order_.back().bytes;
      by_block_.erase(order_.back().block);
      order_.pop_back();
    }
    return numbers;
  }

  void forget(const Block* block, std::int64_t offset, std::int64_t bytes) {
    const std::lock_guard lock(mutex_);
    if (const auto at = by_block_.find(block); at != by_block_.end()) {
      resident_bytes_ -= bytes;
      order_.erase(at->second);
      by_block_.erase(at);
    }
    free_[bytes].push_back(offset);
  }

  [[nodiscard]] std::int64_t resident_bytes() const {
    const std::lock_guard lock(mutex_);
    return resident_bytes_;
  }

 private:
  struct Resident {
    const Block* block;
    std::shared_ptr<const std::byte> numbers;
    std::int64_t bytes;
  };
  void give_back(std::int64_t offset, std::int64_t bytes) {
    const std::lock_guard lock(mutex_);
    free_[bytes].push_back(offset);
  }

  std::int64_t most_resident_;
  int file_ = -1;
  mutable std::mutex mutex_;
  std::int64_t end_ = 0, resident_bytes_ = 0;
  std::map<std::int64_t, std::vector<std::int64_t>> free_;  // places of so many bytes
  std::list<Resident> order_;                               // the last read first
  std::unordered_map<const Block*, std::list<Resident>::iterator> by_block_;
};

Block::Block(std::shared_ptr<const std::byte> numbers, std::int64_t bytes, std::int64_t entries)
    : numbers_(std::move(numbers)), bytes_(bytes), entries_(entries) {}

Block::Block(std::shared_ptr<BlockFile> file, std::int64_t offset, std::int64_t bytes,
             std::int64_t entries)
    : file_(std::move(file)), offset_(offset), bytes_(bytes), entries_(entries) {}

Block::~Block() {
  if (file_) file_->forget(this, offset_, bytes_);
}

std::shared_ptr<const std::byte> Block::read() const {
  return file_ ? file_->read(this, offset_, bytes_) : numbers_;
}

std::shared_ptr<const Block> BlockStore::keep(std::shared_ptr<const std::byte> numbers,
                                              std::int64_t bytes, std::int64_t entries) {
  if (!options_.disk) return std::make_shared<Block>(std::move(numbers), bytes, entries);
  if (!file_) file_ = std::make_shared<BlockFile>(options_.resident);
  const auto offset = file_->write(numbers.get(), bytes);
  return std::make_shared<Block>(file_, offset, bytes, entries);
}

std::int64_t resident_bytes(const std::vector<std::shared_ptr<const Block>>& blocks) {
  std::set<const Block*> in_memory;
  std::set<const BlockFile*> files;
  std::int64_t bytes = 0;
  for (const auto& block : blocks) {
    if (block->file()) {
      files.insert(block->file());
    } else if (in_memory.insert(block.get()).second) {
      bytes += block->bytes();
    }
  }
  for (const auto* file : files) bytes += file->resident_bytes();
  return bytes;
}

// ---- vectors ----

namespace {
constexpr std::int64_t kVectorGroup = 32,
                       kVectorGroupBytes = 34;  // of q8_0: a scale in half precision, codes
}

std::int64_t VectorTable::bytes_of_row() const {
  return padded() / kVectorGroup * kVectorGroupBytes;
}

std::int64_t VectorTable::bytes() const {
  std::int64_t bytes = 0;
  for (const auto& part : parts_) bytes += static_cast<std::int64_t>(part->capacity());
  return bytes;
}

void VectorTable::add(std::span<const float> vector) {
  MNEME_ASSERT(static_cast<std::int64_t>(vector.size()) == width_);
  std::vector<std::uint8_t> row(static_cast<std::size_t>(bytes_of_row()));
  for (std::int64_t g = 0; g < padded() / kVectorGroup; ++g) {
    auto* to = row.data() + g * kVectorGroupBytes;
    const auto begin = g * kVectorGroup, n = std::min(kVectorGroup, width_ - begin);
    float most = 0;
    for (std::int64_t i = 0; i < n; ++i)
      most = std::max(most, std::abs(vector[static_cast<std::size_t>(begin + i)]));
    const c10::Half scale(most / 127.F);
    std::memcpy(to, &scale.x, 2);
    const float inverse = most > 0 ? 127.F / most : 0.F;
    for (std::int64_t i = 0; i < n; ++i) {
      const auto code = static_cast<std::int8_t>(
          std::lround(vector[static_cast<std::size_t>(begin + i)] * inverse));
      std::memcpy(to + 2 + i, &code, 1);
    }
  }
  add_bytes(row);
}

void VectorTable::add_bytes(std::span<const std::uint8_t> row) {
  MNEME_ASSERT(static_cast<std::int64_t>(row.size()) == bytes_of_row());
  if (rows_ % kRowsOfPart == 0) {
    parts_.push_back(std::make_shared<std::vector<std::uint8_t>>());
  } else if (!sole_owner(parts_.back())) {
    parts_.back() = std::make_shared<std::vector<std::uint8_t>>(*parts_.back());
  }
  auto& part = *parts_.back();
  part.insert(part.end(), row.begin(), row.end());
  ++rows_;
}

std::span<const std::uint8_t> VectorTable::row_bytes(std::int64_t i) const {
  MNEME_ASSERT(i >= 0 && i < rows_);
  const auto size = bytes_of_row();
  return {parts_[static_cast<std::size_t>(i / kRowsOfPart)]->data() + i % kRowsOfPart * size,
          static_cast<std::size_t>(size)};
}

std::vector<float> VectorTable::row(std::int64_t i) const {
  std::vector<float> out(static_cast<std::size_t>(padded()));
  kernels::dequantize(WeightType::q8_0, row_bytes(i).data(), 1, padded(), out.data());
  out.resize(static_cast<std::size_t>(width_));
  return out;
}

void VectorTable::products(std::span<const float> query, float* out) const {
  MNEME_ASSERT(static_cast<std::int64_t>(query.size()) == width_);
  if (rows_ == 0) return;
  std::vector<float> x(query.begin(), query.end());
  x.resize(static_cast<std::size_t>(padded()));
  std::vector<kernels::MatvecPart> parts;
  for (std::size_t p = 0; p < parts_.size(); ++p) {
    const auto first = static_cast<std::int64_t>(p) * kRowsOfPart,
               n = std::min(kRowsOfPart, rows_ - first);
    parts.push_back({WeightType::q8_0, parts_[p]->data(), n, out + first, n});
  }
  kernels::matvec(parts, x.data(), 1, padded(), kernels::Activations::f32);
}

void VectorTable::each_part(
    std::span<const float> queries, std::int64_t M,
    const std::function<void(std::int64_t, std::int64_t, const float*)>& use) const {
  MNEME_ASSERT(static_cast<std::int64_t>(queries.size()) == M * width_);
  constexpr std::int64_t kFewRows = 16;  // that meet vectors without unpacking them
  const auto K = padded();
  std::vector<float> x(static_cast<std::size_t>(M * K)), numbers;
  for (std::int64_t m = 0; m < M; ++m)
    std::copy_n(queries.data() + m * width_, width_, x.data() + m * K);
  std::vector<float> products(static_cast<std::size_t>(M * kRowsOfPart));
  for (std::size_t p = 0; p < parts_.size(); ++p) {
    const auto first = static_cast<std::int64_t>(p) * kRowsOfPart,
               n = std::min(kRowsOfPart, rows_ - first);
    if (M <= kFewRows) {
      const kernels::MatvecPart part{WeightType::q8_0, parts_[p]->data(), n, products.data(), n};
      kernels::matvec({&part, 1}, x.data(), M, K, kernels::Activations::f32);
    } else {
      numbers.resize(static_cast<std::size_t>(n * K));
      kernels::dequantize(WeightType::q8_0, parts_[p]->data(), n, K, numbers.data());
      auto to = at::from_blob(products.data(), {M, n}, at::kFloat);
      at::mm_out(to, at::from_blob(x.data(), {M, K}, at::kFloat),
                 at::from_blob(numbers.data(), {n, K}, at::kFloat).t());
    }
    use(first, n, products.data());
  }
}

}  // namespace mneme
