// Softmax attention over paged keys and values, exact, with memory that does not grow with their number.
#pragma once

#include "mneme/kernels/page_view.h"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace mneme::kernels {

/// The queries of one KV head of one sequence. Everything is borrowed.
struct AttendTask {
  const float* q;  ///< [heads,T,d], the d numbers of a query contiguous
  std::int64_t heads, T, q_head_stride, q_time_stride;
  const std::int64_t* q_positions;  ///< [T]
  std::span<const PageView> pages;  ///< in any order
  float* out;                       ///< [heads,T,d], not overlapping q
  std::int64_t out_head_stride, out_time_stride;
  float* lse;  ///< [heads,T] contiguous, or null: log of the sum of the exponentials of the scores
};

/// Which entries a query sees, by original positions.
struct Visibility {
  bool causal = true;       ///< only entries whose position is not after the query's
  std::int64_t window = 0;  ///< only entries with q_position - k_position < window; 0: unlimited
};

/// Throws Error (invalid) where d is not a multiple of 8 up to kMostHeadWidth, or the window is negative.
void check_attention(std::int64_t d, const Visibility& visibility);

/// What numbers are multiplied as.
enum class Products : std::uint8_t {
  f32,
  bf16,  ///< queries, keys, values and weights rounded to bf16 where the CPU multiplies these faster, else f32; few
         ///< queries of 4-bit pages meet the codes as integers of 16 bits where that is faster
};

/// For every query of every task
///   out = sum_e w_e v_e,  w = softmax over visible entries e of (scale q'k_e + log_mass_e),
/// and where nothing is visible out = 0, lse = -inf. Grouped queries share the pages of their KV head. Work is shared
/// evenly among threads: by queries, and for few queries by pages, whose partial results merge by log-sum-exp. Few queries
/// read encoded pages as they lie, without unpacking them to memory.
/// Throws Error (invalid) where d is not a multiple of 8 up to kMostHeadWidth, where a shape does not fit, and where
/// check_page does.
void attend(std::span<const AttendTask> tasks, std::int64_t d, float scale,
            const Visibility& visibility, Products products = Products::f32);

/// How the numbers of a head pair up to be rotated.
enum class PairLayout : std::uint8_t {
  halves,    ///< i with i + pairs
  adjacent,  ///< 2i with 2i + 1
};

/// Rotary positions: pair i of a vector at position p turns by p * inverse_frequencies[i]. Cosines and sines are
/// computed in double precision; those of positions below a limit are kept. Safe to use from several threads.
class Rope {
 public:
  /// Rotates the first 2 * inverse_frequencies.size() numbers of each vector; the rest stay. `magnitude` multiplies
  /// cosines and sines (YaRN's attention factor).
  Rope(std::vector<double> inverse_frequencies, PairLayout layout, double magnitude = 1.0);
  ~Rope();
  Rope(Rope&&) noexcept;
  Rope& operator=(Rope&&) noexcept;

  /// Numbers of a vector that turn.
  [[nodiscard]] std::int64_t width() const noexcept;

  /// Rotates x [heads,T,d] in place, unit stride in d, by positions [T]; they may be negative, which turns back. Turning
  /// by a and then by b equals turning by a + b up to rounding. Throws Error (invalid) on a negative shape.
  void rotate(float* x, std::int64_t heads, std::int64_t T, std::int64_t head_stride,
              std::int64_t time_stride, const std::int64_t* positions) const;

 private:
  struct Content;
  std::unique_ptr<Content> content_;
};

/// The same in one call, without keeping cosines and sines; x [heads,T,d].
void rope(float* x, std::int64_t heads, std::int64_t T, std::int64_t head_stride,
          std::int64_t time_stride, const std::int64_t* positions,
          std::span<const double> inverse_frequencies, PairLayout layout);

/// y_i = e^x_i for n numbers, relative error below 1e-6 where the result is a normal number; y may be x.
void exp(const float* x, float* y, std::int64_t n);

}  // namespace mneme::kernels
