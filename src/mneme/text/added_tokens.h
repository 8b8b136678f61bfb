// AddedTokens: tokens that stand beside the vocabulary model and are found in a text before it is
// cut into words.
#pragma once

#include "mneme/text/normalizer.h"

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace mneme::text {

/// One of them, with Hugging Face's flags.
struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool special = false;      ///< a control token: found in a text only where the caller asks for it
  bool single_word = false;  ///< not next to a letter, digit or underscore
  bool lstrip = false;       ///< takes the white space before it
  bool rstrip = false;       ///< takes the white space behind it
  bool normalized = false;   ///< looked for in the normalized text, not in the text as it came
};

class AddedTokens {
 public:
  AddedTokens() = default;
  /// `normalizer` may be null; it turns the contents of normalized tokens into what the normalized
  /// text has.
  AddedTokens(std::vector<AddedToken> tokens, const Normalizer* normalizer);

  enum class Pass { raw, normalized };
  /// Cuts a text into plain stretches (no id) and tokens (id), in order, no stretch empty. Of
  /// tokens that begin at the same byte the longest is taken. Only tokens of this pass are found,
  /// special ones only if `parse_special`.
  void cut(std::string_view text, Pass pass, bool parse_special,
           const std::function<void(std::string_view, std::optional<std::int32_t>)>& sink) const;

  /// The token of this id, or null.
  [[nodiscard]] const AddedToken* find(std::int32_t id) const;
  [[nodiscard]] std::optional<std::int32_t> id_of(std::string_view content) const;
  [[nodiscard]] const std::vector<AddedToken>& tokens() const { return tokens_; }
  /// Appends everything that decides the cuts, for the digest.
  void describe(std::string& description) const;

 private:
  struct Wanted {
    std::string text;
    std::size_t token;  // index in tokens_
  };
  /// By first byte, the longest first.
  using ByFirstByte = std::array<std::vector<Wanted>, 256>;

  std::vector<AddedToken> tokens_;  // by id
  std::unordered_map<std::int32_t, std::size_t> by_id_;
  std::unordered_map<std::string, std::int32_t> by_content_;
  ByFirstByte raw_, normalized_;
  bool any_raw_ = false, any_normalized_ = false;
};

}  // namespace mneme::text
