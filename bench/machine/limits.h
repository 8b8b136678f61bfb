// What this machine can do at most, measured: how fast it reads memory and multiplies matrices. Speeds of models are
// told as shares of these.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace mneme::bench {

/// Load of the last minute by processes, this one not yet among them; 0 where the system does not tell.
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

/// Bytes a second that are read from memory that no cache holds, over 256 MiB: in pages of the usual size and in those of
/// 2 MiB where the system gives them, in order alone and with lines asked for ahead, by one thread and by all. Each is the
/// best of several passes.
[[nodiscard]] std::vector<Limit> read_bandwidths();

/// How fast products of one kind are.
struct ProductLimits {
  Limit f32, bf16;  ///< ATen's; bf16 where kernels have such products, else 0
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
