// White space in UTF-8, as documents and spans see it.
#pragma once

#include <cstddef>
#include <string_view>

namespace mneme::text {

/// Bytes of the white-space character that begins at `at` (Unicode White_Space), or 0 if another
/// character does.
inline std::size_t space_at(std::string_view text, std::size_t at) noexcept {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
  };
  const unsigned first = byte(at);
  if (at >= text.size()) return 0;
  if (first == ' ' || (first >= '\t' && first <= '\r')) return 1;
  if (first < 0xC2) return 0;
  if (first == 0xC2) return byte(at + 1) == 0x85 || byte(at + 1) == 0xA0 ? 2 : 0;
  if (first < 0xE1 || first > 0xE3) return 0;
  const unsigned tail = byte(at + 1) << 8 | byte(at + 2);
  if (first == 0xE1) return tail == 0x9A80 ? 3 : 0;
  if (first == 0xE3) return tail == 0x8080 ? 3 : 0;
  const bool space = (tail >= 0x8080 && tail <= 0x808A) || tail == 0x80A8 || tail == 0x80A9 ||
                     tail == 0x80AF || tail == 0x819F;
  return space ? 3 : 0;
}

/// Bytes of the white-space character that ends just before `at`, or 0.
inline std::size_t space_before(std::string_view text, std::size_t at) noexcept {
  for (std::size_t n = 1; n <= 3 && n <= at; ++n) {
    if (space_at(text.substr(0, at), at - n) == n) return n;
  }
  return 0;
}

/// The text without white space at its ends.
inline std::string_view trimmed(std::string_view text) noexcept {
  while (const auto n = space_at(text, 0)) text.remove_prefix(n);
  while (const auto n = space_before(text, text.size())) text.remove_suffix(n);
  return text;
}

/// Whether a byte begins a character: everything but UTF-8's continuation bytes.
inline bool begins_character(char byte) noexcept {
  return (static_cast<unsigned char>(byte) & 0xC0U) != 0x80U;
}

}  // namespace mneme::text
