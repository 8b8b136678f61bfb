// What this machine can do at most, measured: how fast it reads memory and multiplies matrices. Speeds of models are
// told as shares of these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace mneme::bench {

/// Load of the last minute by processes, this one too; 0 where the system does not tell.
[[nodiscard]] double machine_load();

/// Bytes that new memory may take before the system has none left.
[[nodiscard]] std::int64_t available_memory();

/// A rate and what reached it.
struct Limit {
  double per_s = 0;
  std::string by;  ///< for people: "pages of 2 MiB, 2 threads"
};

/// The fastest; of none a rate of 0.
[[nodiscard]] Limit best_of(std::span<const Limit> limits);

/// How memory is read: in pages of 2 MiB, where the system gives them, or of the usual size; with lines asked for ahead or
/// in order alone.
struct ReadWay {
  bool huge = false, ahead = false;
  int threads = 1;
  [[nodiscard]] std::string told() const;  ///< for people: "pages of 2 MiB, 2 threads"
};

/// Memory that is read over and over in one way. What was read between two passes has pushed it out of the caches, as far as
/// they are smaller than either.
class MemoryReading {
 public:
  /// Of so many bytes, but not of less than takes about a millisecond: the start of threads would count for more.
  MemoryReading(ReadWay way, std::int64_t bytes);
  ~MemoryReading();
  MemoryReading(const MemoryReading&) = delete;
  MemoryReading& operator=(const MemoryReading&) = delete;

  [[nodiscard]] std::int64_t bytes() const {
    return words_ * static_cast<std::int64_t>(sizeof(std::uint64_t));
  }
  /// Reads all of it once; the seconds that it took.
  double pass();

 private:
  [[nodiscard]] std::size_t allocated() const;
  static constexpr std::int64_t kLeastBytes = std::int64_t{32} << 20;
  ReadWay way_;
  std::int64_t words_;
  std::uint64_t* begin_ = nullptr;
};

/// Bytes a second, with the way that reached them.
struct ReadLimit : Limit {
  ReadWay way;
};

/// The fastest way of reading so many bytes, by one thread or by all; of each the best of several passes.
[[nodiscard]] ReadLimit read_bandwidth(std::int64_t bytes);

/// How fast products of one kind are.
struct ProductLimits {
  Limit f32, bf16;  ///< ATen's, in bf16 also ours; bf16 where kernels have such products, else 0
  Limit best;       ///< of these, of our kernels of 8 bits and of libtorch's FBGEMM
};

/// A matrix of weights [N,K].
struct MatrixShape {
  std::int64_t N = 0, K = 0;
  auto operator<=>(const MatrixShape&) const = default;
};

/// FLOPs a second of products of 1,536 x 1,536 x 1,536 numbers, and of 64 and 512 rows with each of the shapes. A
/// multiplication and its addition are two. Each is the best of several.
[[nodiscard]] ProductLimits product_limits(std::span<const MatrixShape> shapes);

}  // namespace mneme::bench
