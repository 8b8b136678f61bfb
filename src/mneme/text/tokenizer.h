// Tokenizer: text to token ids and back, as the model's own tokenizer does it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// How `Tokenizer::encode` treats special tokens.
struct EncodeOptions {
  /// BOS, CLS, SEP as the model's own tokenizer adds them.
  bool add_special = false;
  /// "<|im_end|>" in the text becomes that token; off: it is plain text.
  bool parse_special = false;
};

/// Text to token ids and back. Immutable once made: any number of threads may use one.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// The ids of a text. Length limits that a tokenizer file declares are not applied: who needs one
  /// cuts, and says so. Byte-level tokenizers take any bytes; the others read what is not UTF-8 as
  /// U+FFFD. Throws `full` above 2 GiB.
  [[nodiscard]] virtual std::vector<std::int32_t> encode(
      std::string_view utf8, const EncodeOptions& options = {}) const = 0;
  /// How many bytes of a text `encode` leaves out because the vocabulary has no token for them.
  /// Many byte-level vocabularies lack bytes that their training text did not hold: SmolLM2's lacks
  /// 21, among them six control characters and what never occurs in UTF-8. Always 0 for WordPiece,
  /// which drops and replaces by its own rules.
  [[nodiscard]] virtual std::int64_t lost_bytes(std::string_view utf8) const = 0;
  /// The text of ids. Byte-level tokenizers give back exactly the bytes that were encoded (a half
  /// character stays half: see StreamingDecoder), but for `lost_bytes`; WordPiece puts spaces
  /// between words. Throws `invalid` on an id outside the vocabulary.
  [[nodiscard]] virtual std::string decode(std::span<const std::int32_t> ids,
                                           bool skip_special = false) const = 0;
  /// What one token adds to a text that has begun: the bytes of a byte-level token, " word" or
  /// "ing" of WordPiece. Empty for an id that the vocabulary leaves out. Throws `invalid` on an id
  /// outside the vocabulary.
  [[nodiscard]] virtual std::string token_bytes(std::int32_t id) const = 0;
  /// One more than the largest id.
  [[nodiscard]] virtual std::int64_t vocabulary_size() const = 0;
  /// The id of a special token by its text, else of a vocabulary entry: by its bytes (" the") for
  /// byte-level tokenizers, by its spelling ("##ing") for WordPiece.
  [[nodiscard]] virtual std::optional<std::int32_t> id_of(std::string_view piece) const = 0;
  /// Whether the id is a control token: never made from plain text, left out by `decode(ids,
  /// true)`.
  [[nodiscard]] virtual bool is_special(std::int32_t id) const = 0;
  [[nodiscard]] virtual std::optional<std::int32_t> bos() const = 0;
  [[nodiscard]] virtual std::optional<std::int32_t> eos() const = 0;
  /// The ids that end a generation: EOS and the ends of turn and text that the vocabulary has.
  /// Sorted.
  [[nodiscard]] virtual const std::vector<std::int32_t>& end_of_generation() const = 0;
  /// SHA-256 over vocabulary, merges, normalizer, pre-tokenizer and special tokens, as 64 hex
  /// digits: equal digests, equal ids.
  [[nodiscard]] virtual std::string digest() const = 0;
};

/// The tokenizer in a GGUF file's metadata, an object that maps keys such as
/// "tokenizer.ggml.tokens" to their values. Serves tokenizer.ggml.model "gpt2" (byte-level BPE).
/// Throws `unsupported` for other models and pre-tokenizers, naming them, and `corrupt` for
/// metadata that contradicts itself.
std::unique_ptr<Tokenizer> tokenizer_from_gguf(const nlohmann::json& metadata);

/// The tokenizer in a Hugging Face directory (tokenizer.json, else vocab.txt of a BERT), or in one
/// of these files; the names of BOS and EOS come from tokenizer_config.json beside it. Serves
/// byte-level BPE and WordPiece. Throws `not_found` and `io` for files, `corrupt` for bad JSON,
/// `unsupported` for a part that is not served, by its name.
std::unique_ptr<Tokenizer> tokenizer_from_directory(const std::filesystem::path& directory_or_file);

}  // namespace mneme
