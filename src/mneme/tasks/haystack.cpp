#include "mneme/tasks/haystack.h"

#include "mneme/core/error.h"
#include "mneme/tasks/squad.h"
#include "mneme/text/sentence.h"
#include "mneme/text/unicode.h"
#include "mneme/text/white_space.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fmt/format.h>
#include <numeric>

namespace mneme::tasks {
namespace {

// Sentences that are shorter are exclamations, longer ones lists or what lost its full stops.
constexpr std::size_t kShortestSentence = 16, kLongestSentence = 320;
// How many pieces in a row may be too long for what is left before a text counts as full.
constexpr int kPiecesTooLong = 128;
constexpr std::size_t kGeneratedSentences = 8192;

constexpr std::array<std::string_view, 24> kQualities = {
    "old",    "young",    "quiet",    "tired", "careful", "cheerful", "patient",   "proud",
    "clever", "nervous",  "honest",   "tall",  "lonely",  "busy",     "forgetful", "kind",
    "poor",   "stubborn", "thankful", "stern", "curious", "gentle",   "famous",    "sleepy"};
constexpr std::array<std::string_view, 24> kPeople = {
    "baker",    "miller", "teacher", "captain", "neighbour", "carpenter", "widow",   "traveller",
    "clerk",    "doctor", "tailor",  "sailor",  "student",   "stranger",  "farmer",  "blacksmith",
    "landlord", "nurse",  "lawyer",  "weaver",  "mason",     "fisherman", "printer", "innkeeper"};
constexpr std::array<std::string_view, 24> kDeeds = {
    "carried",   "mended",     "found",    "sold",   "bought",    "hid",
    "borrowed",  "cleaned",    "examined", "lost",   "described", "wrapped",
    "delivered", "inherited",  "repaired", "traded", "kept",      "dropped",
    "measured",  "remembered", "admired",  "lifted", "unpacked",  "returned"};
constexpr std::array<std::string_view, 24> kThings = {
    "a wooden ladder",    "the broken clock",  "a bundle of letters", "an old map",
    "the iron kettle",    "a worn saddle",     "two heavy boxes",     "the torn sail",
    "a pair of boots",    "the longest rope",  "a leather purse",     "the church bell",
    "a sack of flour",    "the window frame",  "a dozen candles",     "the empty barrel",
    "a sharp knife",      "the wedding dress", "an unsigned note",    "a bent key",
    "the village ledger", "a rusty lantern",   "three copper coins",  "the spare wheel"};
constexpr std::array<std::string_view, 24> kWhere = {"near the river",
                                                     "behind the mill",
                                                     "before the rain began",
                                                     "in the early morning",
                                                     "while the others slept",
                                                     "after a long silence",
                                                     "on the way to market",
                                                     "beside the stone bridge",
                                                     "without a word",
                                                     "at the end of the lane",
                                                     "for the second time",
                                                     "under the oak tree",
                                                     "before supper",
                                                     "in front of the school",
                                                     "during the harvest",
                                                     "on a cold evening",
                                                     "with great care",
                                                     "by the light of the moon",
                                                     "as the church emptied",
                                                     "across the valley",
                                                     "at the bottom of the hill",
                                                     "for no particular reason",
                                                     "late in the autumn",
                                                     "in spite of the wind"};

std::vector<std::string> generated_sentences() {
  Generator generator(1);
  std::vector<std::string> out;
  const auto person = [&] {
    const auto quality = pick(kQualities, generator);
    return fmt::format("the {} {}", quality, pick(kPeople, generator));
  };
  const auto deed = [&] {
    const auto verb = pick(kDeeds, generator);
    return fmt::format("{} {}", verb, pick(kThings, generator));
  };
  for (std::size_t i = 0; i < kGeneratedSentences; ++i) {
    auto sentence = fmt::format("{} ", person());
    sentence += deed();
    const auto where = std::string(pick(kWhere, generator));
    switch (below(generator, 4)) {
      case 0:
        sentence = fmt::format("{}, {}", where, sentence);
        break;
      case 1:
        sentence += fmt::format(" {}, and {} ", where, person());
        sentence += deed();
        break;
      case 2:
        break;
      default:
        sentence += " " + where;
    }
    sentence.front() = static_cast<char>(sentence.front() - 'a' + 'A');
    out.push_back(sentence + ".");
  }
  return out;
}

bool any_lower_case(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) { return c >= 'a' && c <= 'z'; });
}

/// A novel as one line, without the lines that are headings.
std::string running_text(std::string_view book) {
  std::string out;
  out.reserve(book.size());
  for (std::size_t begin = 0; begin < book.size();) {
    const auto end = std::min(book.find('\n', begin), book.size());
    const auto line = text::trimmed(book.substr(begin, end - begin));
    begin = end + 1;
    if (!any_lower_case(line) || line.starts_with("CHAPTER")) continue;
    for (const char c : line) {
      const bool space = text::space_at({&c, 1}, 0) != 0;
      if (!space || out.empty() || out.back() != ' ') out += space ? ' ' : c;
    }
    out += ' ';
  }
  return out;
}

void add_sentences(std::string_view book, std::vector<std::string>& out) {
  const auto all = running_text(book);
  for (std::size_t begin = 0; begin < all.size();) {
    const auto end = text::next_sentence(all, begin);
    const auto sentence = text::trimmed(std::string_view(all).substr(begin, end - begin));
    begin = end;
    if (sentence.size() < kShortestSentence || sentence.size() > kLongestSentence) continue;
    const auto first = sentence[sentence.front() == '"' || sentence.front() == '\'' ? 1 : 0];
    if (first >= 'A' && first <= 'Z' && text::ends_sentence(sentence)) out.emplace_back(sentence);
  }
}

std::int64_t tokens_of(const Tokenizer& tokenizer, std::string_view text) {
  return static_cast<std::int64_t>(tokenizer.encode(text).size());
}

char ascii_lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

/// The text with each fact before the piece of its border.
Haystack written(const Frame& frame, std::span<const Fact> facts,
                 const std::vector<std::string>& pieces,
                 const std::vector<std::int64_t>& ends /* tokens up to each piece's end */) {
  const auto total = static_cast<double>(ends.empty() ? 0 : ends.back());
  std::vector<std::size_t> border(facts.size()), order(facts.size());
  for (std::size_t i = 0; i < facts.size(); ++i) {
    const auto wanted = facts[i].depth * total;
    const auto above = std::lower_bound(ends.begin(), ends.end(), wanted,
                                        [](auto end, double at) { return double(end) < at; });
    auto at = static_cast<std::size_t>(above - ends.begin());  // pieces that end before `wanted`
    if (at < ends.size()) {
      const auto before = at == 0 ? 0.0 : static_cast<double>(ends[at - 1]);
      if (static_cast<double>(ends[at]) - wanted < wanted - before) ++at;
    }
    border[i] = at;
  }
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return border[a] < border[b]; });
  Haystack out{frame.before, std::vector<std::pair<std::int64_t, std::int64_t>>(facts.size())};
  std::size_t sentences = 0;
  const auto add = [&](std::string_view text) {
    if (sentences > 0) out.context += frame.between;
    if (frame.title) out.context += frame.title(sentences);
    ++sentences;
    const auto begin = static_cast<std::int64_t>(out.context.size());
    out.context += text;
    return std::pair{begin, static_cast<std::int64_t>(out.context.size())};
  };
  for (std::size_t piece = 0, next = 0; piece <= pieces.size(); ++piece) {
    for (; next < order.size() && border[order[next]] == piece; ++next)
      out.facts[order[next]] = add(facts[order[next]].text);
    if (piece < pieces.size()) add(pieces[piece]);
  }
  out.context += frame.after;
  return out;
}

}  // namespace

std::size_t below(Generator& generator, std::size_t n) {
  return std::min(n - 1, static_cast<std::size_t>(generator.uniform() * static_cast<double>(n)));
}

std::vector<std::size_t> distinct(Generator& generator, std::size_t n, std::size_t count) {
  std::vector<std::size_t> all(n);
  std::iota(all.begin(), all.end(), std::size_t{0});
  for (std::size_t i = 0; i < count; ++i) std::swap(all[i], all[i + below(generator, n - i)]);
  all.resize(count);
  return all;
}

Prose::Prose(const std::filesystem::path& data) {
  std::vector<std::filesystem::path> books;
  std::error_code absent;
  for (const auto& entry : std::filesystem::directory_iterator(data / "books", absent)) {
    const auto name = entry.path().filename().string();
    if (name.starts_with("Trollope_") && name.ends_with(".txt.gz")) books.push_back(entry.path());
  }
  std::sort(books.begin(), books.end());
  for (const auto& book : books) {
    const auto content = read_gzip(book);
    if (!text::is_valid_utf8(content)) {
      throw Error(Errc::corrupt, fmt::format("{}: not UTF-8: fetch it again", book.string()));
    }
    add_sentences(content, sentences_);
  }
  if (sentences_.empty()) sentences_ = generated_sentences();
}

Filler Prose::filler(Generator& generator, std::function<bool(std::string_view)> wanted) const {
  return [this, next = below(generator, sentences_.size()),
          wanted = std::move(wanted)]() mutable -> std::optional<std::string> {
    for (std::size_t refused = 0; refused < sentences_.size(); ++refused) {
      const auto& sentence = sentences_[next];
      next = (next + 1) % sentences_.size();
      if (wanted(sentence)) return sentence;
    }
    return std::nullopt;
  };
}

void refuse_tokens(std::string_view task, std::int64_t tokens, std::int64_t needed) {
  throw Error(Errc::usage, fmt::format("{}: {} tokens hold no sample: its facts and its question "
                                       "alone have {}: ask for that many or more",
                                       task, tokens, needed));
}

Haystack fill(const Frame& frame, std::span<const Fact> facts, const Filler& filler,
              std::int64_t tokens, const Tokenizer& tokenizer) {
  auto counted = tokens_of(tokenizer, frame.before + frame.after + frame.question);
  const auto cost = [&](std::size_t sentence, const std::string& text) {
    const auto title = frame.title ? frame.title(sentence) : std::string();
    return tokens_of(tokenizer, frame.between + title + text);
  };
  for (const auto& fact : facts) counted += cost(0, fact.text);
  std::vector<std::string> pieces;
  std::vector<std::int64_t> ends;
  std::int64_t filled = 0;
  for (int too_long = 0; too_long < kPiecesTooLong && counted + filled < tokens;) {
    auto piece = filler();
    if (!piece) break;
    const auto more = cost(pieces.size() + facts.size(), *piece);
    if (counted + filled + more > tokens) {
      ++too_long;
      continue;
    }
    filled += more;
    pieces.push_back(std::move(*piece));
    ends.push_back(filled);
  }
  // Tokens may join or part where sentences meet, so what counts is the text as a whole. A sentence that goes for a token
  // too many leaves room for a shorter one.
  constexpr int kRefills = 3;
  bool shortened = false;
  for (int refills = 0;;) {
    auto out = written(frame, facts, pieces, ends);
    auto over = tokens_of(tokenizer, out.context + frame.question) - tokens;
    if (over <= 0) {
      if (!shortened || refills++ == kRefills) return out;
      std::optional<std::string> piece;
      std::int64_t more = 0;
      for (int too_long = 0; too_long < kPiecesTooLong; ++too_long) {
        piece = filler();
        if (!piece) return out;
        more = cost(pieces.size() + facts.size(), *piece);
        if (more <= -over) break;
        piece.reset();
      }
      if (!piece) return out;
      ends.push_back((ends.empty() ? 0 : ends.back()) + more);
      pieces.push_back(std::move(*piece));
      continue;
    }
    if (pieces.empty()) refuse_tokens(frame.task, tokens, tokens + over);
    shortened = true;
    while (over > 0 && !pieces.empty()) {
      pieces.pop_back();
      const auto end = ends.back();
      ends.pop_back();
      over -= end - (ends.empty() ? 0 : ends.back());
    }
  }
}

bool holds(std::string_view text, std::string_view part) {
  return std::search(text.begin(), text.end(), part.begin(), part.end(),
                     [](char a, char b) { return ascii_lower(a) == ascii_lower(b); }) !=
             text.end() ||
         part.empty();
}

std::function<bool(std::string_view)> without(std::vector<std::string> words) {
  return [words = std::move(words)](std::string_view text) {
    return std::none_of(words.begin(), words.end(),
                        [&](const auto& word) { return holds(text, word); });
  };
}

}  // namespace mneme::tasks
