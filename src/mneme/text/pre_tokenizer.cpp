#include "mneme/text/pre_tokenizer.h"

#include <memory>
#include <optional>
#include <string>
#include <unicode/uchar.h>
#include <utility>

#define PCRE2_CODE_UNIT_WIDTH 8
#include "mneme/core/error.h"
#include "mneme/text/normalizer.h"
#include "mneme/text/unicode.h"

#include <pcre2.h>

namespace mneme::text {

namespace {

/// Turns the matches of a text into pieces, for every kind of pattern: `match(text, from)` gives
/// the next non-empty match at or behind byte `from`, as begin and end, or nothing.
template <class Match>
void split_by_matches(std::string_view text, SplitBehavior behavior, bool invert, PieceSink& sink,
                      Match match) {
  std::size_t begun = 0, ended = 0;  // the piece that waits for what follows
  const auto emit_waiting = [&] {
    if (ended > begun) sink.piece(text.substr(begun, ended - begun));
    begun = ended;
  };
  bool waiting_matches = false;
  // Stretches arrive in order and cover the text; `matches` tells the separators from the rest.
  const auto stretch = [&](std::size_t begin, std::size_t end, bool matches) {
    if (begin == end) return;
    const bool separates = matches != invert;
    switch (behavior) {
      case SplitBehavior::removed:
        if (!separates) sink.piece(text.substr(begin, end - begin));
        return;
      case SplitBehavior::isolated:
        sink.piece(text.substr(begin, end - begin));
        return;
      case SplitBehavior::contiguous:
        if (separates != waiting_matches) emit_waiting();
        break;
      case SplitBehavior::merged_with_previous:
        if (!separates || waiting_matches) emit_waiting();
        break;
      case SplitBehavior::merged_with_next:
        if (separates || !waiting_matches) emit_waiting();
        break;
    }
    waiting_matches = separates;
    ended = end;
  };
  std::size_t at = 0;
  while (at < text.size()) {
    const std::optional<std::pair<std::size_t, std::size_t>> found = match(text, at);
    if (!found) break;
    stretch(at, found->first, false);
    stretch(found->first, found->second, true);
    at = found->second;
  }
  stretch(at, text.size(), false);
  emit_waiting();
}

std::string describe_split(std::string_view kind, std::string_view pattern, SplitBehavior behavior,
                           bool invert) {
  return std::string(kind) + '(' + std::to_string(pattern.size()) + ':' + std::string(pattern) +
         ',' + std::to_string(static_cast<int>(behavior)) + ',' + (invert ? '1' : '0') + ')';
}

/// The pattern with `\s` and `\S` spelled out: PCRE2 counts U+180E, a mark of Mongolian, as space;
/// Oniguruma does not.
std::string with_white_space_spelled_out(std::string_view pattern) {
  constexpr std::string_view kWhiteSpace = R"(\p{Z}\t-\r\x{85})";
  std::string spelled;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's') {
        spelled += in_class ? std::string(kWhiteSpace) : '[' + std::string(kWhiteSpace) + ']';
      } else if (escaped == 'S' && !in_class) {
        spelled += "[^" + std::string(kWhiteSpace) + ']';
      } else {
        spelled += {c, escaped};
      }
      continue;
    }
    if (c == '[' && !in_class) {
      in_class = true;
      spelled += c;
      // A bracket that stands first belongs to the class.
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') spelled += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') spelled += pattern[++i];
      continue;
    }
    if (c == ']') in_class = false;
    spelled += c;
  }
  return spelled;
}

class PatternSplit final : public PreTokenizerStep {
 public:
  PatternSplit(std::string_view pattern, SplitBehavior behavior, bool invert)
      : description_(describe_split("pattern", pattern, behavior, invert)),
        behavior_(behavior),
        invert_(invert) {
    const auto spelled = with_white_space_spelled_out(pattern);
    int code = 0;
    PCRE2_SIZE where = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spelled.data()), spelled.size(),
                              PCRE2_UTF | PCRE2_UCP, &code, &where, nullptr));
    if (!code_) {
      throw Error(Errc::unsupported, "pre-tokenizer pattern \"" + std::string(pattern) +
                                         "\" cannot be compiled: " + reason(code) + " at byte " +
                                         std::to_string(where) + " of \"" + spelled + '"');
    }
    // Where there is no just-in-time compiler the same matches come from PCRE2's interpreter.
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
  }

  void split(std::string_view text, PieceSink& sink) const override {
    // PCRE2 wants valid UTF-8; what is not is a piece of its own.
    while (!text.empty()) {
      const auto valid = valid_utf8_prefix(text);
      if (valid > 0) split_valid(text.substr(0, valid), sink);
      text.remove_prefix(valid);
      std::size_t invalid = 0;
      while (invalid < text.size()) {
        const auto step = next_code_point(text, invalid);
        if (step.valid) break;
        invalid += step.bytes;
      }
      if (invalid > 0) sink.piece(text.substr(0, invalid));
      text.remove_prefix(invalid);
    }
  }

  [[nodiscard]] std::string describe() const override { return description_; }

 private:
  struct FreeCode {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };
  struct FreeMatch {
    void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
  };

  static std::string reason(int code) {
    PCRE2_UCHAR buffer[128] = {};
    pcre2_get_error_message(code, buffer, sizeof buffer);
    return reinterpret_cast<const char*>(buffer);
  }

  void split_valid(std::string_view text, PieceSink& sink) const {
    // Only the whole match is asked for, so one block a thread serves every pattern.
    thread_local const std::unique_ptr<pcre2_match_data, FreeMatch> match(
        pcre2_match_data_create(1, nullptr));
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    split_by_matches(text, behavior_, invert_, sink,
                     [&](std::string_view,
                         std::size_t from) -> std::optional<std::pair<std::size_t, std::size_t>> {
                       std::uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
                       auto status = pcre2_match(code_.get(), subject, text.size(), from, options,
                                                 match.get(), nullptr);
                       if (status == PCRE2_ERROR_JIT_STACKLIMIT) {
                         options |= PCRE2_NO_JIT;  // the interpreter keeps its stack on the heap
                         status = pcre2_match(code_.get(), subject, text.size(), from, options,
                                              match.get(), nullptr);
                       }
                       if (status == PCRE2_ERROR_NOMATCH) return std::nullopt;
                       if (status < 0) {
                         throw Error(Errc::unsupported,
                                     "the pre-tokenizer's pattern gives up at byte " +
                                         std::to_string(from) + " of the text: " + reason(status));
                       }
                       const auto* ends = pcre2_get_ovector_pointer(match.get());
                       return std::pair<std::size_t, std::size_t>(ends[0], ends[1]);
                     });
  }

  std::unique_ptr<pcre2_code, FreeCode> code_;
  std::string description_;
  SplitBehavior behavior_;
  bool invert_;
};

class StringSplit final : public PreTokenizerStep {
 public:
  StringSplit(std::string_view string, SplitBehavior behavior, bool invert)
      : string_(string), behavior_(behavior), invert_(invert) {
    if (string.empty())
      throw Error(Errc::unsupported, "pre-tokenizer Split by the empty string: give it a pattern");
  }
  void split(std::string_view text, PieceSink& sink) const override {
    split_by_matches(text, behavior_, invert_, sink,
                     [&](std::string_view all,
                         std::size_t from) -> std::optional<std::pair<std::size_t, std::size_t>> {
                       const auto at = all.find(string_, from);
                       if (at == std::string_view::npos) return std::nullopt;
                       return std::pair(at, at + string_.size());
                     });
  }
  [[nodiscard]] std::string describe() const override {
    return describe_split("string", string_, behavior_, invert_);
  }

 private:
  std::string string_;
  SplitBehavior behavior_;
  bool invert_;
};

class DigitSplit final : public PreTokenizerStep {
 public:
  explicit DigitSplit(bool individually) : individually_(individually) {}
  void split(std::string_view text, PieceSink& sink) const override {
    const auto behavior = individually_ ? SplitBehavior::isolated : SplitBehavior::contiguous;
    split_by_matches(text, behavior, false, sink,
                     [](std::string_view all,
                        std::size_t from) -> std::optional<std::pair<std::size_t, std::size_t>> {
                       for (std::size_t at = from; at < all.size();) {
                         const auto step = next_code_point(all, at);
                         if (step.valid && is_numeric(step.code_point))
                           return std::pair(at, at + step.bytes);
                         at += step.bytes;
                       }
                       return std::nullopt;
                     });
  }
  [[nodiscard]] std::string describe() const override {
    return individually_ ? "digits(1)" : "digits(0)";
  }

 private:
  bool individually_;
};

class PrefixSpace final : public PreTokenizerStep {
 public:
  void split(std::string_view text, PieceSink& sink) const override {
    if (text.front() == ' ') return sink.piece(text);
    std::string longer;
    longer.reserve(text.size() + 1);
    longer += ' ';
    longer += text;
    sink.piece(longer);
  }
  [[nodiscard]] std::string describe() const override { return "prefix_space"; }
};

class BertSplit final : public PreTokenizerStep {
 public:
  void split(std::string_view text, PieceSink& sink) const override {
    std::size_t begun = 0;
    for (std::size_t at = 0; at < text.size();) {
      const auto step = next_code_point(text, at);
      const bool space = is_white_space(step.code_point);
      if (space || is_bert_punctuation(step.code_point)) {
        if (at > begun) sink.piece(text.substr(begun, at - begun));
        if (!space) sink.piece(text.substr(at, step.bytes));
        begun = at + step.bytes;
      }
      at += step.bytes;
    }
    if (begun < text.size()) sink.piece(text.substr(begun));
  }
  [[nodiscard]] std::string describe() const override { return "bert"; }
};

}  // namespace

std::unique_ptr<PreTokenizerStep> split_by_pattern(std::string_view pattern, SplitBehavior behavior,
                                                   bool invert) {
  return std::make_unique<PatternSplit>(pattern, behavior, invert);
}

std::unique_ptr<PreTokenizerStep> split_by_string(std::string_view string, SplitBehavior behavior,
                                                  bool invert) {
  return std::make_unique<StringSplit>(string, behavior, invert);
}

std::unique_ptr<PreTokenizerStep> split_digits(bool individually) {
  return std::make_unique<DigitSplit>(individually);
}

std::unique_ptr<PreTokenizerStep> prefix_space() { return std::make_unique<PrefixSpace>(); }

std::unique_ptr<PreTokenizerStep> split_like_bert() { return std::make_unique<BertSplit>(); }

void PreTokenizer::split(std::string_view text, PieceSink& sink) const {
  if (!text.empty()) split_from(0, text, sink);
}

void PreTokenizer::split_from(std::size_t step, std::string_view text, PieceSink& sink) const {
  if (step == steps_.size()) return sink.piece(text);
  if (step + 1 == steps_.size()) return steps_[step]->split(text, sink);
  PieceFunction next([&](std::string_view piece) { split_from(step + 1, piece, sink); });
  steps_[step]->split(text, next);
}

std::string PreTokenizer::describe() const {
  std::string description;
  for (const auto& step : steps_) description += step->describe() + '|';
  return description;
}

}  // namespace mneme::text
