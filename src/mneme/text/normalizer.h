// Normalizer: the clean-up of a text before it is cut into words.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::text {

/// One kind of clean-up. Safe to use from many threads.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  /// The cleaned text.
  [[nodiscard]] virtual std::string normalize(std::string_view utf8) const = 0;
  /// Everything that decides the result, for the digest.
  [[nodiscard]] virtual std::string describe() const = 0;
};

/// What BERT's own clean-up does; the defaults are those of the uncased models.
struct BertNormalizerOptions {
  bool clean_text = true;            ///< drop control characters, make every white space a blank
  bool handle_chinese_chars = true;  ///< blanks around every CJK ideograph
  bool strip_accents = true;         ///< decompose and drop the non-spacing marks
  bool lowercase = true;
};
/// Reads bytes that are no UTF-8 as U+FFFD, which `clean_text` drops.
std::unique_ptr<Normalizer> bert_normalizer(const BertNormalizerOptions& options);

enum class NormalizationForm { nfc, nfd, nfkc, nfkd };
/// A Unicode normalization form; bytes that are no UTF-8 stay as they are.
std::unique_ptr<Normalizer> normalization_form(NormalizationForm form);
/// Lower case, each character for itself; bytes that are no UTF-8 stay as they are.
std::unique_ptr<Normalizer> lowercase_normalizer();
/// Drops the marks of a text that is decomposed already; bytes that are no UTF-8 stay as they are.
std::unique_ptr<Normalizer> strip_accents_normalizer();
/// Some in a row.
std::unique_ptr<Normalizer> normalizer_sequence(std::vector<std::unique_ptr<Normalizer>> parts);

/// Whether BERT's pre-tokenizer lets the character stand alone: ASCII that is neither letter,
/// digit, space nor control, and the general categories P*.
bool is_bert_punctuation(char32_t code_point) noexcept;

}  // namespace mneme::text
