#include "mneme/memory/quotation.h"

#include "mneme/text/white_space.h"

#include <vector>

namespace mneme::memory {
namespace {

struct Word {
  std::string text;
  std::int64_t begin, end;
};

bool is_space(unsigned char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_punctuation(unsigned char c) {
  return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) ||
         (c >= 123 && c <= 126);
}

/// Words between white space, lower-cased, without ASCII punctuation inside ("U.S." is "us"); articles left out.
std::vector<Word> words_of(std::string_view text) {
  std::vector<Word> out;
  for (std::size_t i = 0; i < text.size();) {
    if (is_space(static_cast<unsigned char>(text[i]))) {
      ++i;
      continue;
    }
    Word word{"", static_cast<std::int64_t>(i), 0};
    for (; i < text.size() && !is_space(static_cast<unsigned char>(text[i])); ++i) {
      const auto c = static_cast<unsigned char>(text[i]);
      if (!is_punctuation(c))
        word.text.push_back(static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c));
    }
    word.end = static_cast<std::int64_t>(i);
    if (!word.text.empty() && word.text != "a" && word.text != "an" && word.text != "the")
      out.push_back(std::move(word));
  }
  return out;
}

bool in_word(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte > 32 && !is_punctuation(byte);
}

/// Where the answer's own bytes stand, its ends not inside a word.
std::optional<std::pair<std::int64_t, std::int64_t>> find_as_it_is(std::string_view text,
                                                                   std::string_view answer) {
  if (answer.empty()) return std::nullopt;
  for (auto at = text.find(answer); at != std::string_view::npos; at = text.find(answer, at + 1)) {
    const auto end = at + answer.size();
    const bool begins_inside = at > 0 && in_word(text[at - 1]) && in_word(answer.front());
    const bool ends_inside = end < text.size() && in_word(text[end]) && in_word(answer.back());
    if (!begins_inside && !ends_inside)
      return std::pair(static_cast<std::int64_t>(at), static_cast<std::int64_t>(end));
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::pair<std::int64_t, std::int64_t>> find_quotation(std::string_view text,
                                                                    std::string_view answer) {
  if (const auto found = find_as_it_is(text, text::trimmed(answer))) return found;
  const auto wanted = words_of(answer), held = words_of(text);
  if (wanted.empty() || wanted.size() > held.size()) return std::nullopt;
  for (std::size_t i = 0; i + wanted.size() <= held.size(); ++i) {
    std::size_t j = 0;
    while (j < wanted.size() && held[i + j].text == wanted[j].text) ++j;
    if (j == wanted.size()) return std::pair(held[i].begin, held[i + j - 1].end);
  }
  return std::nullopt;
}

}  // namespace mneme::memory
