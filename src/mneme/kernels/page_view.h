// PageView: one page of the keys and values that attention keeps, as the kernels see it.
#pragma once

#include <cstdint>
#include <limits>

namespace mneme::kernels {

/// Entries in a full page.
inline constexpr std::int64_t kPageEntries = 64;

/// The widest head that attention takes.
inline constexpr std::int64_t kMostHeadWidth = 256;

/// How the numbers of a page are stored.
enum class KvType : std::uint8_t { f32, f16, bf16 };

/// How encoded numbers are laid out: kernels/codec.h.
enum class NumberCodec : std::uint8_t;

/// The lowest and the highest of some positions; of none at first.
struct PositionRange {
  std::int64_t lowest = std::numeric_limits<std::int64_t>::max();
  std::int64_t highest = std::numeric_limits<std::int64_t>::min();
};

/// Keys and values of up to kPageEntries entries of one KV head; borrowed, read only.
struct PageView {
  const void* k;                  ///< [entries,d] row-major, or an encoded matrix that holds them
  const void* v;                  ///< the same
  const std::int64_t* positions;  ///< [entries], in any order
  const float* log_mass;          ///< [entries] added to the scores, or null for zeros
  std::int32_t entries;           ///< 0 to kPageEntries
  KvType type;                    ///< of k and v that are not encoded
  NumberCodec k_codec{};          ///< of encoded k
  NumberCodec v_codec{};          ///< of encoded v
  std::int32_t encoded = 0;       ///< rows of the encoded matrices k and v; 0: they are not encoded
  std::int32_t first = 0;         ///< which of these rows is the first entry
  PositionRange range{};          ///< holds all the positions; as it begins: they are looked at
  /// Which numbers of a key are held, ascending, where not all are: k is [entries,k_width] then, and not encoded. The others
  /// count as 0.
  const std::uint8_t* channels = nullptr;
  std::int32_t k_width = 0;  ///< numbers of a key where channels are named
};

/// Throws Error (invalid) where attention cannot read such a page: it is too large, its entries lie outside the encoded
/// matrices, encoded keys have channels named, or these are not of group8 or channel4 for keys and of group8 or group4 for values.
void check_page(const PageView& page);

}  // namespace mneme::kernels
