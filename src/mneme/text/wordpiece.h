// WordPiece: the longest vocabulary entry that begins the word, then the longest that goes on,
// until the word is used up; a word that cannot be used up is unknown as a whole.
//
// source    Devlin et al. 2019, arXiv:1810.04805 (BERT)
#pragma once

#include "mneme/text/piece_table.h"
#include "mneme/text/subword_model.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::text {

/// What a WordPiece model is made of.
struct WordPieceParts {
  std::vector<std::string> pieces;  ///< spelling by id; an empty one is a hole
  std::int32_t unknown = 0;
  std::string continuing_prefix = "##";        ///< begins the entries that go on in a word
  std::int64_t longest_word_characters = 100;  ///< longer words are unknown
  bool tidy_punctuation = true;  ///< decoding puts no blank before . ? ! , and short forms
};

class WordPiece final : public SubwordModel {
 public:
  /// Throws `corrupt` if the unknown token is outside the vocabulary.
  explicit WordPiece(WordPieceParts parts);

  [[nodiscard]] std::unique_ptr<Workspace> workspace() const override;
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids,
                   Workspace& room) const override;
  [[nodiscard]] std::string_view piece(std::int32_t id) const override { return table_.piece(id); }
  [[nodiscard]] std::optional<std::int32_t> id_of(std::string_view piece) const override {
    return table_.id_of(piece);
  }
  [[nodiscard]] std::int64_t size() const override { return table_.size(); }
  [[nodiscard]] std::int64_t lost_bytes(std::string_view) const override { return 0; }
  void append_text(std::int32_t id, bool first, std::string& text) const override;
  [[nodiscard]] bool puts_spaces() const override { return true; }
  void describe(std::string& description) const override;

 private:
  PieceTable table_;
  PieceTable continuing_;  // by id like table_, entries that begin with the prefix, without it
  std::int32_t unknown_;
  std::string prefix_;
  std::int64_t longest_word_characters_;
  bool tidy_punctuation_;
};

}  // namespace mneme::text
