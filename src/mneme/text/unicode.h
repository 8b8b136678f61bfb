// Unicode: reading, checking and repairing UTF-8, and the character classes that tokenizers ask
// for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mneme::text {

/// What a reader of UTF-8 puts where bytes are no character.
inline constexpr char32_t kReplacementCharacter = 0xFFFD;

/// One step through bytes that should be UTF-8.
struct Utf8Step {
  char32_t code_point = kReplacementCharacter;
  /// How far the step goes, 1 to 4; where invalid, the longest start of a character there is.
  std::uint8_t bytes = 0;
  bool valid = false;
  bool cut = false;  ///< invalid only because the text ends before the character does
};

/// Reads the character at byte `at` (< utf8.size()). Overlong forms, surrogates and values above
/// U+10FFFF are invalid.
Utf8Step next_code_point(std::string_view utf8, std::size_t at) noexcept;

/// Length in bytes of the longest valid start of the text; the whole length if all of it is valid.
std::size_t valid_utf8_prefix(std::string_view utf8) noexcept;

inline bool is_valid_utf8(std::string_view utf8) noexcept {
  return valid_utf8_prefix(utf8) == utf8.size();
}

/// Appends the UTF-8 form of a code point; surrogates and values above U+10FFFF become U+FFFD.
void append_utf8(char32_t code_point, std::string& utf8);

/// The text with each longest start of a broken character replaced by one U+FFFD.
std::string replace_invalid_utf8(std::string_view utf8);

/// Whether the code point has the property White_Space.
bool is_white_space(char32_t code_point) noexcept;
/// Whether the general category is one of Nd, Nl, No.
bool is_numeric(char32_t code_point) noexcept;

}  // namespace mneme::text
