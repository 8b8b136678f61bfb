#include "mneme/tasks/string_match.h"

#include <algorithm>
#include <unicode/locid.h>
#include <unicode/unistr.h>

namespace mneme::tasks {
namespace {

std::string in_lower_case(std::string_view text) {
  auto lower = icu::UnicodeString::fromUTF8(
      icu::StringPiece(text.data(), static_cast<std::int32_t>(text.size())));
  lower.toLower(icu::Locale::getRoot());
  std::string out;
  lower.toUTF8String(out);
  return out;
}

std::int64_t found(std::string_view said, std::span<const std::string> references) {
  const auto text = in_lower_case(said);
  return std::count_if(references.begin(), references.end(), [&](const auto& reference) {
    return text.find(in_lower_case(reference)) != std::string::npos;
  });
}

}  // namespace

double string_match_all(std::string_view said, std::span<const std::string> references) {
  if (references.empty()) return 0;
  return static_cast<double>(found(said, references)) / static_cast<double>(references.size());
}

double string_match_part(std::string_view said, std::span<const std::string> references) {
  return found(said, references) > 0 ? 1 : 0;
}

}  // namespace mneme::tasks
