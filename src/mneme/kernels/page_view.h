// PageView: one page of the keys and values that attention keeps, as the kernels see it.
#pragma once

#include <cstdint>

namespace mneme::kernels {

/// Entries in a full page.
inline constexpr std::int64_t kPageEntries = 64;

/// How the numbers of a page are stored.
enum class KvType : std::uint8_t { f32, f16, bf16 };

/// Keys and values of up to kPageEntries entries of one KV head; borrowed, read only.
struct PageView {
  const void* k;                  ///< [entries,d] row-major
  const void* v;                  ///< [entries,d] row-major
  const std::int64_t* positions;  ///< [entries], in any order
  const float* log_mass;          ///< [entries] added to the scores, or null for zeros
  std::int32_t entries;           ///< 0 to kPageEntries
  KvType type;                    ///< of k and v
};

}  // namespace mneme::kernels
