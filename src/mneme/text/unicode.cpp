#include "mneme/text/unicode.h"

#include <cstring>
#include <unicode/uchar.h>

namespace mneme::text {

namespace {

bool continues(std::string_view utf8, std::size_t at) noexcept {
  return (static_cast<unsigned char>(utf8[at]) & 0xC0) == 0x80;
}

}  // namespace

Utf8Step next_code_point(std::string_view utf8, std::size_t at) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(utf8[at + i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {lead, 1, true, false};
  const int length = lead >= 0xC2 && lead <= 0xDF   ? 2
                     : lead >= 0xE0 && lead <= 0xEF ? 3
                     : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                    : 0;
  if (length == 0) return {kReplacementCharacter, 1, false, false};
  // The second byte's range keeps out overlong forms (E0, F0), surrogates (ED) and what lies above
  // U+10FFFF (F4).
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t code_point = lead & (0x7Fu >> length);
  for (int i = 1; i < length; ++i) {
    const auto bytes = static_cast<std::uint8_t>(i);
    if (at + i >= utf8.size()) return {kReplacementCharacter, bytes, false, true};
    const unsigned next = byte(i);
    if (i == 1 ? next < low || next > high : !continues(utf8, at + i)) {
      return {kReplacementCharacter, bytes, false, false};
    }
    code_point = code_point << 6 | (next & 0x3F);
  }
  return {code_point, static_cast<std::uint8_t>(length), true, false};
}

std::size_t valid_utf8_prefix(std::string_view utf8) noexcept {
  std::size_t at = 0;
  while (at < utf8.size()) {
    std::uint64_t eight;
    while (at + sizeof eight <= utf8.size()) {
      std::memcpy(&eight, utf8.data() + at, sizeof eight);
      if (eight & 0x8080808080808080u) break;
      at += sizeof eight;
    }
    // Here stands something beyond ASCII within eight bytes, or the end.
    for (const std::size_t stop = at + sizeof eight; at < stop && at < utf8.size();) {
      const auto step = next_code_point(utf8, at);
      if (!step.valid) return at;
      at += step.bytes;
    }
  }
  return utf8.size();
}

void append_utf8(char32_t code_point, std::string& utf8) {
  const auto c = code_point > 0x10FFFF || (code_point >= 0xD800 && code_point <= 0xDFFF)
                     ? kReplacementCharacter
                     : code_point;
  if (c < 0x80) {
    utf8.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    utf8.push_back(static_cast<char>(0xC0 | c >> 6));
    utf8.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    utf8.push_back(static_cast<char>(0xE0 | c >> 12));
    utf8.push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    utf8.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    utf8.push_back(static_cast<char>(0xF0 | c >> 18));
    utf8.push_back(static_cast<char>(0x80 | (c >> 12 & 0x3F)));
    utf8.push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    utf8.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

std::string replace_invalid_utf8(std::string_view utf8) {
  std::string repaired;
  repaired.reserve(utf8.size());
  while (!utf8.empty()) {
    const auto valid = valid_utf8_prefix(utf8);
    repaired.append(utf8.substr(0, valid));
    utf8.remove_prefix(valid);
    if (utf8.empty()) break;
    append_utf8(kReplacementCharacter, repaired);
    utf8.remove_prefix(next_code_point(utf8, 0).bytes);
  }
  return repaired;
}

bool is_white_space(char32_t code_point) noexcept {
  return u_isUWhiteSpace(static_cast<UChar32>(code_point));
}

bool is_numeric(char32_t code_point) noexcept {
  return (U_GET_GC_MASK(static_cast<UChar32>(code_point)) & U_GC_N_MASK) != 0;
}

}  // namespace mneme::text
