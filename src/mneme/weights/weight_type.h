// WeightType: how the numbers of a weight are stored, in files and in memory; quantized formats are those of GGUF.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace mneme {

/// The storage format of one weight. A row of K numbers is K / block_size(type) blocks, one after another:
enum class WeightType : std::uint8_t {
  f32,   ///< IEEE single precision
  f16,   ///< IEEE half precision
  bf16,  ///< the upper half of single precision
  q8_0,  ///< 32 numbers: f16 d, 32 int8 q; value d q
  q4_0,  ///< 32 numbers: f16 d, 16 bytes, low nibbles first; value d (q - 8)
  q4_1,  ///< 32 numbers: f16 d, f16 m, 16 bytes, low nibbles first; value d q + m
};

/// Every storage format, in the order of the enumeration.
inline constexpr std::array<WeightType, 6> kWeightTypes{WeightType::f32,  WeightType::f16,
                                                        WeightType::bf16, WeightType::q8_0,
                                                        WeightType::q4_0, WeightType::q4_1};

/// How many numbers one block holds: 1 for plain formats, 32 for quantized ones.
[[nodiscard]] constexpr std::int64_t block_size(WeightType type) noexcept {
  return type >= WeightType::q8_0 ? 32 : 1;
}

/// How many bytes one block takes.
[[nodiscard]] constexpr std::int64_t block_bytes(WeightType type) noexcept {
  switch (type) {
    case WeightType::f32:
      return 4;
    case WeightType::f16:
      return 2;
    case WeightType::bf16:
      return 2;
    case WeightType::q8_0:
      return 34;
    case WeightType::q4_0:
      return 18;
    case WeightType::q4_1:
      return 20;
  }
  return 0;
}

/// Whether blocks share a scale, so that rows must be whole blocks.
[[nodiscard]] constexpr bool is_quantized(WeightType type) noexcept { return block_size(type) > 1; }

/// Bytes of one row of K numbers; K is a multiple of block_size(type) (checked by whoever read K).
[[nodiscard]] constexpr std::int64_t row_bytes(WeightType type, std::int64_t K) noexcept {
  return K / block_size(type) * block_bytes(type);
}

/// The name in lower case: "q4_1".
[[nodiscard]] constexpr std::string_view name(WeightType type) noexcept {
  switch (type) {
    case WeightType::f32:
      return "f32";
    case WeightType::f16:
      return "f16";
    case WeightType::bf16:
      return "bf16";
    case WeightType::q8_0:
      return "q8_0";
    case WeightType::q4_0:
      return "q4_0";
    case WeightType::q4_1:
      return "q4_1";
  }
  return "";
}

/// The format of that name, or nothing.
[[nodiscard]] constexpr std::optional<WeightType> weight_type_named(
    std::string_view text) noexcept {
  for (WeightType type : kWeightTypes) {
    if (name(type) == text) return type;
  }
  return std::nullopt;
}

}  // namespace mneme
