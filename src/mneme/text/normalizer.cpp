#include "mneme/text/normalizer.h"

#include "mneme/core/error.h"
#include "mneme/text/unicode.h"

#include <algorithm>
#include <array>
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>
#include <utility>

namespace mneme::text {

namespace {

/// General categories as Hugging Face's BERT parts know them: from the tables of Unicode 8. A
/// character that is newer belongs to no category there, so it is neither control, mark nor
/// punctuation.
std::uint32_t bert_category_mask(char32_t code_point) noexcept {
  constexpr std::uint8_t kNewestMajorVersion = 8;
  switch (code_point) {  // characters that changed their category since
    case 0x166D:
    case 0x111C9:
      return U_GC_PO_MASK;
    case 0x1734:
      return U_GC_MN_MASK;
    case 0x1885:
    case 0x1886:
      return U_GC_LO_MASK;
    case 0xA9BD:
      return U_GC_MC_MASK;
    default:
      break;
  }
  UVersionInfo age;
  u_charAge(static_cast<UChar32>(code_point), age);
  return age[0] <= kNewestMajorVersion ? U_GET_GC_MASK(static_cast<UChar32>(code_point))
                                       : U_GC_CN_MASK;
}

bool is_cjk_ideograph(char32_t c) noexcept {
  constexpr std::array<std::pair<char32_t, char32_t>, 8> kBlocks = {{{0x4E00, 0x9FFF},
                                                                     {0x3400, 0x4DBF},
                                                                     {0x20000, 0x2A6DF},
                                                                     {0x2A700, 0x2B73F},
                                                                     {0x2B740, 0x2B81F},
                                                                     {0x2B920, 0x2CEAF},
                                                                     {0xF900, 0xFAFF},
                                                                     {0x2F800, 0x2FA1F}}};
  if (c < kBlocks[1].first) return false;
  for (const auto& [first, last] : kBlocks) {
    if (c >= first && c <= last) return true;
  }
  return false;
}

void append_lower(char32_t code_point, std::string& text) {
  append_utf8(static_cast<char32_t>(u_tolower(static_cast<UChar32>(code_point))), text);
  // The one letter whose lower case is two characters whatever stands around it.
  if (code_point == 0x130) append_utf8(0x307, text);
}

const icu::Normalizer2& icu_normalizer(NormalizationForm form) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = nullptr;
  switch (form) {
    case NormalizationForm::nfc:
      normalizer = icu::Normalizer2::getNFCInstance(status);
      break;
    case NormalizationForm::nfd:
      normalizer = icu::Normalizer2::getNFDInstance(status);
      break;
    case NormalizationForm::nfkc:
      normalizer = icu::Normalizer2::getNFKCInstance(status);
      break;
    case NormalizationForm::nfkd:
      normalizer = icu::Normalizer2::getNFKDInstance(status);
      break;
  }
  if (U_FAILURE(status) || normalizer == nullptr) {
    throw Error(Errc::unsupported, std::string("ICU has no Unicode normalization data (") +
                                       u_errorName(status) +
                                       "): install the data package of libicu");
  }
  return *normalizer;
}

class BertNormalizer final : public Normalizer {
 public:
  explicit BertNormalizer(const BertNormalizerOptions& options)
      : o_(options), nfd_(icu_normalizer(NormalizationForm::nfd)) {
    for (std::size_t c = 0; c < ascii_.size(); ++c) {
      const bool space = c == '\t' || c == '\n' || c == '\r' || c == ' ';
      ascii_[c] = static_cast<char>(o_.lowercase && c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
      dropped_[c] = false;
      if (o_.clean_text && space) ascii_[c] = ' ';
      if (o_.clean_text && !space && (c < ' ' || c == 0x7F)) dropped_[c] = true;
    }
  }

  [[nodiscard]] std::string normalize(std::string_view utf8) const override {
    Output out;
    out.text.reserve(utf8.size() + utf8.size() / 8);
    for (std::size_t at = 0; at < utf8.size();) {
      const auto byte = static_cast<unsigned char>(utf8[at]);
      if (byte < 0x80) {
        ++at;
        if (dropped_[byte]) continue;
        out.end_marks(*this);
        out.text.push_back(ascii_[byte]);
        continue;
      }
      const auto step = next_code_point(utf8, at);
      at += step.bytes;
      const auto c = step.code_point;
      if (o_.clean_text) {
        if (c == kReplacementCharacter || is_dropped(c)) continue;
        if (is_white_space(c)) {
          out.end_marks(*this);
          out.text.push_back(' ');
          continue;
        }
      }
      const bool apart = o_.handle_chinese_chars && is_cjk_ideograph(c);
      if (apart) {
        out.end_marks(*this);
        out.text.push_back(' ');
      }
      o_.strip_accents ? decompose(c, out) : put(c, out.text);
      if (apart) {
        out.end_marks(*this);
        out.text.push_back(' ');
      }
    }
    out.end_marks(*this);
    return std::move(out.text);
  }

  [[nodiscard]] std::string describe() const override {
    return std::string("bert(") + (o_.clean_text ? '1' : '0') +
           (o_.handle_chinese_chars ? '1' : '0') + (o_.strip_accents ? '1' : '0') +
           (o_.lowercase ? '1' : '0') + ')';
  }

 private:
  static bool is_dropped(char32_t c) noexcept {
    constexpr std::uint32_t kOther = U_GC_CC_MASK | U_GC_CF_MASK | U_GC_CO_MASK;
    return (bert_category_mask(c) & kOther) != 0;
  }

  /// The text so far, and the combining marks that wait for their canonical order: by class, else
  /// as they came. ICU's normalizer would insert them one by one, which is quadratic in a run of
  /// marks.
  struct Output {
    std::string text;
    std::vector<std::pair<std::uint8_t, char32_t>> marks;

    void end_marks(const BertNormalizer& owner) {
      if (marks.empty()) return;
      std::stable_sort(marks.begin(), marks.end(),
                       [](const auto& a, const auto& b) { return a.first < b.first; });
      for (const auto& [combining_class, c] : marks) owner.put(c, text);
      marks.clear();
    }
  };

  void decompose(char32_t c, Output& out) const {
    icu::UnicodeString parts;
    if (!nfd_.getDecomposition(static_cast<UChar32>(c), parts)) return put_in_order(c, out);
    for (std::int32_t i = 0; i < parts.length(); i = parts.moveIndex32(i, 1)) {
      put_in_order(static_cast<char32_t>(parts.char32At(i)), out);
    }
  }

  void put_in_order(char32_t c, Output& out) const {
    const auto combining_class = nfd_.getCombiningClass(static_cast<UChar32>(c));
    if (combining_class == 0) out.end_marks(*this);
    if ((bert_category_mask(c) & U_GC_MN_MASK) != 0) return;  // an accent
    if (combining_class == 0) {
      put(c, out.text);
    } else {
      out.marks.emplace_back(combining_class, c);
    }
  }

  void put(char32_t c, std::string& text) const {
    if (o_.lowercase) {
      append_lower(c, text);
    } else {
      append_utf8(c, text);
    }
  }

  BertNormalizerOptions o_;
  const icu::Normalizer2& nfd_;
  std::array<char, 128> ascii_{};
  std::array<bool, 128> dropped_{};
};

/// Applies `valid(stretch, out)` to what is UTF-8 and copies the rest.
template <class F>
std::string normalize_valid(std::string_view utf8, F valid) {
  std::string out;
  out.reserve(utf8.size());
  while (!utf8.empty()) {
    const auto length = valid_utf8_prefix(utf8);
    if (length > 0) valid(utf8.substr(0, length), out);
    utf8.remove_prefix(length);
    if (utf8.empty()) break;
    const auto bytes = next_code_point(utf8, 0).bytes;
    out.append(utf8.substr(0, bytes));
    utf8.remove_prefix(bytes);
  }
  return out;
}

class FormNormalizer final : public Normalizer {
 public:
  explicit FormNormalizer(NormalizationForm form) : form_(form), icu_(icu_normalizer(form)) {}
  [[nodiscard]] std::string normalize(std::string_view utf8) const override {
    return normalize_valid(utf8, [&](std::string_view stretch, std::string& out) {
      UErrorCode status = U_ZERO_ERROR;
      const auto ordered = with_marks_in_order(stretch);
      icu::StringByteSink<std::string> sink(&out);
      icu_.normalizeUTF8(0, piece_of(ordered), sink, nullptr, status);
      if (U_FAILURE(status))
        throw Error(Errc::full, std::string("ICU cannot normalize a text: ") + u_errorName(status));
    });
  }
  [[nodiscard]] std::string describe() const override {
    return "form(" + std::to_string(static_cast<int>(form_)) + ')';
  }

 private:
  static icu::StringPiece piece_of(std::string_view text) {
    return {text.data(), static_cast<std::int32_t>(text.size())};
  }

  /// An equivalent text whose combining marks stand in canonical order. ICU inserts marks one by
  /// one where they do not, which is quadratic in a run of them.
  [[nodiscard]] std::string with_marks_in_order(std::string_view utf8) const {
    constexpr char32_t kFirstMark = 0x300;
    std::string ordered;
    ordered.reserve(utf8.size());
    std::vector<std::pair<std::uint8_t, char32_t>> marks;
    const auto end_marks = [&] {
      std::stable_sort(marks.begin(), marks.end(),
                       [](const auto& a, const auto& b) { return a.first < b.first; });
      for (const auto& [combining_class, c] : marks) append_utf8(c, ordered);
      marks.clear();
    };
    for (std::size_t at = 0; at < utf8.size();) {
      const auto step = next_code_point(utf8, at);
      const auto combining_class =
          step.code_point < kFirstMark
              ? 0
              : icu_.getCombiningClass(static_cast<UChar32>(step.code_point));
      if (combining_class == 0) {
        if (!marks.empty()) end_marks();
        ordered.append(utf8.substr(at, step.bytes));
      } else {
        marks.emplace_back(static_cast<std::uint8_t>(combining_class), step.code_point);
      }
      at += step.bytes;
    }
    end_marks();
    return ordered;
  }

  NormalizationForm form_;
  const icu::Normalizer2& icu_;
};

class Lowercase final : public Normalizer {
 public:
  [[nodiscard]] std::string normalize(std::string_view utf8) const override {
    return normalize_valid(utf8, [](std::string_view stretch, std::string& out) {
      for (std::size_t at = 0; at < stretch.size();) {
        const auto step = next_code_point(stretch, at);
        append_lower(step.code_point, out);
        at += step.bytes;
      }
    });
  }
  [[nodiscard]] std::string describe() const override { return "lowercase"; }
};

class StripAccents final : public Normalizer {
 public:
  [[nodiscard]] std::string normalize(std::string_view utf8) const override {
    return normalize_valid(utf8, [](std::string_view stretch, std::string& out) {
      for (std::size_t at = 0; at < stretch.size();) {
        const auto step = next_code_point(stretch, at);
        if ((U_GET_GC_MASK(static_cast<UChar32>(step.code_point)) & U_GC_M_MASK) == 0) {
          out.append(stretch.substr(at, step.bytes));
        }
        at += step.bytes;
      }
    });
  }
  [[nodiscard]] std::string describe() const override { return "strip_accents"; }
};

class NormalizerSequence final : public Normalizer {
 public:
  explicit NormalizerSequence(std::vector<std::unique_ptr<Normalizer>> parts)
      : parts_(std::move(parts)) {}
  [[nodiscard]] std::string normalize(std::string_view utf8) const override {
    std::string text(utf8);
    for (const auto& part : parts_) text = part->normalize(text);
    return text;
  }
  [[nodiscard]] std::string describe() const override {
    std::string description;
    for (const auto& part : parts_) description += part->describe() + '|';
    return description;
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

}  // namespace

std::unique_ptr<Normalizer> bert_normalizer(const BertNormalizerOptions& options) {
  return std::make_unique<BertNormalizer>(options);
}

std::unique_ptr<Normalizer> normalization_form(NormalizationForm form) {
  return std::make_unique<FormNormalizer>(form);
}

std::unique_ptr<Normalizer> lowercase_normalizer() { return std::make_unique<Lowercase>(); }

std::unique_ptr<Normalizer> strip_accents_normalizer() { return std::make_unique<StripAccents>(); }

std::unique_ptr<Normalizer> normalizer_sequence(std::vector<std::unique_ptr<Normalizer>> parts) {
  return std::make_unique<NormalizerSequence>(std::move(parts));
}

bool is_bert_punctuation(char32_t code_point) noexcept {
  if (code_point < 0x80) {
    return (code_point >= '!' && code_point <= '/') || (code_point >= ':' && code_point <= '@') ||
           (code_point >= '[' && code_point <= '`') || (code_point >= '{' && code_point <= '~');
  }
  return (bert_category_mask(code_point) & U_GC_P_MASK) != 0;
}

}  // namespace mneme::text
