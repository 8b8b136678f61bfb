#include "mneme/text/added_tokens.h"

#include "mneme/text/unicode.h"

#include <algorithm>
#include <unicode/uchar.h>

namespace mneme::text {

namespace {

/// Where the character that ends before byte `end` (> 0) begins.
std::size_t character_before(std::string_view text, std::size_t end) {
  std::size_t at = end - 1;
  while (at > 0 && end - at < 4 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at + next_code_point(text, at).bytes == end ? at : end - 1;
}

/// Unicode's word characters: alphabetic, marks, decimal digits, connectors, joiners.
bool is_word_character(char32_t c) {
  constexpr std::uint32_t kWord = U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK;
  const auto point = static_cast<UChar32>(c);
  return u_isUAlphabetic(point) || (U_GET_GC_MASK(point) & kWord) != 0 ||
         u_hasBinaryProperty(point, UCHAR_JOIN_CONTROL);
}

bool is_space_at(std::string_view text, std::size_t at) {
  const auto step = next_code_point(text, at);
  return step.valid && is_white_space(step.code_point);
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const Normalizer* normalizer)
    : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    const auto& token = tokens_[i];
    by_id_.emplace(token.id, i);
    by_content_.emplace(token.content, token.id);
    auto wanted =
        token.normalized && normalizer ? normalizer->normalize(token.content) : token.content;
    if (wanted.empty()) continue;
    (token.normalized ? any_normalized_ : any_raw_) = true;
    auto& same = (token.normalized ? normalized_ : raw_)[static_cast<unsigned char>(wanted[0])];
    same.push_back({std::move(wanted), i});
  }
  for (auto* table : {&raw_, &normalized_}) {
    for (auto& same : *table) {
      std::stable_sort(same.begin(), same.end(), [](const Wanted& a, const Wanted& b) {
        return a.text.size() > b.text.size();
      });
    }
  }
}

void AddedTokens::cut(
    std::string_view text, Pass pass, bool parse_special,
    const std::function<void(std::string_view, std::optional<std::int32_t>)>& sink) const {
  const auto& table = pass == Pass::raw ? raw_ : normalized_;
  std::size_t given = 0;  // the text before this byte has been given away
  if (pass == Pass::raw ? any_raw_ : any_normalized_) {
    for (std::size_t at = 0; at < text.size();) {
      const auto& candidates = table[static_cast<unsigned char>(text[at])];
      const auto found =
          std::find_if(candidates.begin(), candidates.end(), [&](const Wanted& wanted) {
            return (parse_special || !tokens_[wanted.token].special) &&
                   text.substr(at).starts_with(wanted.text);
          });
      if (found == candidates.end()) {
        ++at;
        continue;
      }
      const auto& token = tokens_[found->token];
      std::size_t begin = at, end = at + found->text.size();
      at = end;
      if (token.single_word) {
        const auto is_word_at = [&](std::size_t i) {
          return is_word_character(next_code_point(text, i).code_point);
        };
        const bool apart_before = begin == 0 || !is_word_at(character_before(text, begin));
        const bool apart_behind = end == text.size() || !is_word_at(end);
        if (!apart_before || !apart_behind) continue;
      }
      if (token.lstrip) {
        while (begin > given) {
          const auto before = character_before(text, begin);
          if (before < given || !is_space_at(text, before)) break;
          begin = before;
        }
      }
      begin = std::max(begin, given);
      if (token.rstrip) {
        while (end < text.size() && is_space_at(text, end)) end += next_code_point(text, end).bytes;
      }
      if (begin > given) sink(text.substr(given, begin - given), std::nullopt);
      sink(text.substr(begin, end - begin), token.id);
      given = end;
      at = std::max(at, given);
    }
  }
  if (given < text.size()) sink(text.substr(given), std::nullopt);
}

const AddedToken* AddedTokens::find(std::int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

std::optional<std::int32_t> AddedTokens::id_of(std::string_view content) const {
  const auto found = by_content_.find(std::string(content));
  return found == by_content_.end() ? std::nullopt : std::optional(found->second);
}

void AddedTokens::describe(std::string& description) const {
  for (const auto& token : tokens_) {
    description +=
        std::to_string(token.id) + ',' + std::to_string(token.content.size()) + ':' + token.content;
    for (const bool flag :
         {token.special, token.single_word, token.lstrip, token.rstrip, token.normalized}) {
      description += flag ? '1' : '0';
    }
  }
}

}  // namespace mneme::text
