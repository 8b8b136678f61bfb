#include "mneme/kernels/packed.h"

#include "mneme/core/error.h"
#include "mneme/core/large_pages.h"
#include "mneme/kernels/kernel_table.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace mneme::kernels {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kBlockBytes = std::size_t{64} << 20;

// Memory for a matrix, not initialised. Matrices follow each other in blocks that the system is asked to map in large
// pieces: a step reads all weights, and would look up each of 25,000 pages else. A block goes with its last matrix; of one
// that is not filled up, memory is taken only as far as it was written to.
std::shared_ptr<std::uint8_t> matrix_memory(std::int64_t bytes) {
  const auto size = (static_cast<std::size_t>(bytes) + kLine - 1) / kLine * kLine;
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
  static std::mutex mutex;
  static std::weak_ptr<std::uint8_t> last;
  static std::size_t used = 0, room = 0;
  const std::lock_guard lock(mutex);
  auto block = last.lock();
  if (!block || room - used < size) {
    room = std::max(kBlockBytes, (size + kLargePage - 1) / kLargePage * kLargePage);
    used = 0;
    block = {reinterpret_cast<std::uint8_t*>(allocate_large_pages(room)),
             [bytes = room](std::uint8_t* begin) {
               free_large_pages(reinterpret_cast<std::byte*>(begin), bytes);
             }};
#if defined(__GLIBC__)
    // What a prompt left free in the heap goes back: matrices in the heap would have filled it.
    malloc_trim(0);
#endif
    last = block;
  }
  auto* begin = block.get() + used;
  used += size;
  return {std::move(block), begin};
#else
  return {reinterpret_cast<std::uint8_t*>(allocate_aligned(kLine, std::max(size, kLine))),
          [](std::uint8_t* begin) { std::free(begin); }};
#endif
}

std::int64_t group_bytes(WeightType type, std::int64_t K) {
  const std::int64_t codes = kPackedRows * (type == WeightType::q8_0 ? kBlock : kBlock / 2);
  return packed_header_bytes(K / kBlock, type == WeightType::q4_1) + K / kBlock * codes;
}

// One row of the file's order to its place in a zeroed group.
void place_row(WeightType type, const std::uint8_t* row, std::int64_t blocks, std::int64_t r,
               std::uint8_t* group) {
  const bool has_minimum = type == WeightType::q4_1;
  const std::int64_t header = has_minimum ? 4 : 2, fours = type == WeightType::q8_0 ? 8 : 4;
  std::uint8_t* codes = group + packed_header_bytes(blocks, has_minimum);
  for (std::int64_t b = 0; b < blocks; ++b, row += block_bytes(type)) {
    std::uint8_t* scales = group + b * header * kPackedRows;
    std::memcpy(scales + 2 * r, row, 2);
    if (has_minimum) std::memcpy(scales + 2 * (kPackedRows + r), row + 2, 2);
    for (std::int64_t j = 0; j < fours; ++j) {
      std::uint32_t four;
      std::memcpy(&four, row + header + 4 * j, 4);
      if (type == WeightType::q8_0) four ^= 0x80808080U;
      std::memcpy(codes + ((b * fours + j) * kPackedRows + r) * 4, &four, 4);
    }
  }
}

}  // namespace

std::int64_t PackedMatrix::bytes() const noexcept {
  return (rows_ + kPackedRows - 1) / kPackedRows * group_bytes(type_, columns_);
}

PackedMatrix::PackedMatrix(WeightType type, const void* rows, std::int64_t N, std::int64_t K)
    : type_(type), rows_(N), columns_(K) {
  if (!is_quantized(type) || N < 0 || K < 0 || K % kBlock != 0) {
    throw Error(Errc::invalid, "a matrix [" + std::to_string(N) + "," + std::to_string(K) +
                                   "] of " + std::string(name(type)) +
                                   " cannot be packed: quantized ones of whole blocks can");
  }
  const std::int64_t each = group_bytes(type, K);
  data_ = matrix_memory(bytes());
  const auto* from = static_cast<const std::uint8_t*>(rows);
  at::parallel_for(0, (N + kPackedRows - 1) / kPackedRows, 16,
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t g = begin; g < end; ++g) {
                       std::uint8_t* group = data_.get() + g * each;
                       const std::int64_t n = std::min(kPackedRows, N - g * kPackedRows);
                       if (n < kPackedRows) std::memset(group, 0, static_cast<std::size_t>(each));
                       for (std::int64_t r = 0; r < n; ++r) {
                         place_row(type, from + (g * kPackedRows + r) * row_bytes(type, K),
                                   K / kBlock, r, group);
                       }
                     }
                   });
}

}  // namespace mneme::kernels
