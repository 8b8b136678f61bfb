#include "mneme/text/sentence.h"

#include "mneme/text/white_space.h"

#include <algorithm>
#include <iterator>

namespace mneme::text {
namespace {

struct Mark {
  std::string_view bytes;
  bool needs_space;
};

constexpr Mark kEnds[] = {{".", true},   {"!", true},   {"?", true},   {"…", true},
                          {"؟", true},   {"۔", true},   {"։", true},   {"।", true},
                          {"॥", true},   {"።", true},   {"။", false},  {"។", false},
                          {"。", false}, {"！", false}, {"？", false}, {"｡", false}};

constexpr std::string_view kClosers[] = {"\"", "'", ")",  "]",  "}",  "*",  "_",  "”", "’",
                                         "»",  "›", "」", "』", "）", "】", "〉", "》"};

// What stands before a full stop that does not end a sentence; those in kBeforeNumber only before a
// digit.
constexpr std::string_view kAbbreviations[] = {
    "Mr",  "Mrs",  "Ms", "Dr",  "Prof",   "St",     "Sr",  "Jr",   "Rev", "Hon", "Gen",
    "Col", "Capt", "Lt", "Sgt", "Gov",    "Sen",    "Rep", "Mt",   "vs",  "cf",  "e.g",
    "i.e", "viz",  "ca", "al",  "approx", "Messrs", "Mme", "Mlle", "eg",  "ie"};
constexpr std::string_view kBeforeNumber[] = {
    "No",  "no",  "Nos", "p",   "pp",  "Fig", "fig",  "Figs", "vol", "Vol", "ch",  "Ch",
    "Sec", "sec", "Eq",  "eq",  "Art", "art", "Nr",   "op",   "Op",  "c",   "Jan", "Feb",
    "Mar", "Apr", "Jun", "Jul", "Aug", "Sep", "Sept", "Oct",  "Nov", "Dec"};

const Mark* end_at(std::string_view text, std::size_t at) {
  const auto first = static_cast<unsigned char>(text[at]);
  if (first < 0x80 && first != '.' && first != '!' && first != '?') return nullptr;
  const auto rest = text.substr(at);
  const auto* found = std::find_if(std::begin(kEnds), std::end(kEnds),
                                   [&](const Mark& m) { return rest.starts_with(m.bytes); });
  return found == std::end(kEnds) ? nullptr : found;
}

std::size_t closer_at(std::string_view text, std::size_t at) {
  const auto rest = text.substr(at, 4);
  for (const auto c : kClosers) {
    if (rest.starts_with(c)) return c.size();
  }
  return 0;
}

bool letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         (static_cast<unsigned char>(c) & 0x80U) != 0;
}

// Whether the single full stop at `stop`, after which `next` follows, belongs to an abbreviation or
// an initial.
bool abbreviates(std::string_view text, std::size_t stop, char next) {
  std::size_t begin = stop;
  while (begin > 0 && stop - begin < 10 && (letter(text[begin - 1]) || text[begin - 1] == '.'))
    --begin;
  const auto word = text.substr(begin, stop - begin);
  if (word.size() == 1 && word[0] >= 'A' && word[0] <= 'Z') return true;
  if (std::find(std::begin(kAbbreviations), std::end(kAbbreviations), word) !=
      std::end(kAbbreviations))
    return true;
  return next >= '0' && next <= '9' &&
         std::find(std::begin(kBeforeNumber), std::end(kBeforeNumber), word) !=
             std::end(kBeforeNumber);
}

}  // namespace

std::size_t next_sentence(std::string_view text, std::size_t at) {
  while (at < text.size()) {
    const Mark* mark = end_at(text, at);
    if (mark == nullptr) {
      ++at;
      continue;
    }
    const std::size_t stop = at;
    bool needs_space = mark->needs_space;
    int marks = 0;
    for (; at < text.size() && (mark = end_at(text, at)) != nullptr;
         at += mark->bytes.size(), ++marks) {
      needs_space = needs_space && mark->needs_space;
    }
    while (at < text.size()) {
      const auto n = closer_at(text, at);
      if (n == 0) break;
      at += n;
    }
    const std::size_t closed = at;
    while (at < text.size()) {
      const auto n = space_at(text, at);
      if (n == 0) break;
      at += n;
    }
    if (at == text.size()) return at;
    if (at == closed && needs_space) continue;
    const char next = text[at];
    if (needs_space && ((next >= 'a' && next <= 'z') || next == ',' || next == ';')) continue;
    if (marks == 1 && text[stop] == '.' && closed == stop + 1 && abbreviates(text, stop, next))
      continue;
    return at;
  }
  return text.size();
}

bool ends_sentence(std::string_view line) {
  for (bool more = true; more;) {
    more = false;
    for (const auto closer : kClosers) {
      if (!line.ends_with(closer)) continue;
      line.remove_suffix(closer.size());
      more = true;
      break;
    }
  }
  return line.ends_with(':') || std::any_of(std::begin(kEnds), std::end(kEnds),
                                            [&](const Mark& m) { return line.ends_with(m.bytes); });
}

}  // namespace mneme::text
