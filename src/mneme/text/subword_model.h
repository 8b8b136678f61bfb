// SubwordModel: turns one word, as the pre-tokenizer cut it, into token ids.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::text {

/// One of the two vocabulary models (byte-level BPE, WordPiece). Immutable but for caches that
/// threads may share.
class SubwordModel {
 public:
  virtual ~SubwordModel() = default;

  /// Room that one call of `encode` needs again and again; made once a call, so that long texts do
  /// not allocate.
  class Workspace {
   public:
    virtual ~Workspace() = default;
  };
  [[nodiscard]] virtual std::unique_ptr<Workspace> workspace() const = 0;

  /// Appends the ids of one word.
  virtual void encode_word(std::string_view word, std::vector<std::int32_t>& ids,
                           Workspace& room) const = 0;
  /// The entry's bytes (BPE) or spelling (WordPiece); empty where the vocabulary has none. `id` is
  /// in [0, size).
  [[nodiscard]] virtual std::string_view piece(std::int32_t id) const = 0;
  [[nodiscard]] virtual std::optional<std::int32_t> id_of(std::string_view piece) const = 0;
  /// One more than the largest id of the vocabulary.
  [[nodiscard]] virtual std::int64_t size() const = 0;
  /// Bytes of a text that neither an entry nor the unknown token stands for.
  [[nodiscard]] virtual std::int64_t lost_bytes(std::string_view text) const = 0;
  /// What the entry adds to a text; `first`: the text is empty so far.
  virtual void append_text(std::int32_t id, bool first, std::string& text) const = 0;
  /// Whether decoding puts a blank between words because the vocabulary does not hold the blanks.
  [[nodiscard]] virtual bool puts_spaces() const = 0;
  /// Appends everything that decides the ids, for the digest.
  virtual void describe(std::string& description) const = 0;
};

}  // namespace mneme::text
