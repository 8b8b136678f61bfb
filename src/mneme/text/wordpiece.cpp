#include "mneme/text/wordpiece.h"

#include "mneme/core/error.h"
#include "mneme/text/white_space.h"

#include <algorithm>
#include <array>
#include <utility>

namespace mneme::text {

namespace {

std::vector<std::string> without_prefix(const std::vector<std::string>& pieces,
                                        std::string_view prefix) {
  std::vector<std::string> rest(pieces.size());
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    if (pieces[id].starts_with(prefix)) rest[id] = pieces[id].substr(prefix.size());
  }
  return rest;
}

/// Hugging Face's clean-up of one decoded token, in its order.
void tidy(std::string& token) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kRules = {
      {{" .", "."},
       {" ?", "?"},
       {" !", "!"},
       {" ,", ","},
       {" ' ", "'"},
       {" n't", "n't"},
       {" 'm", "'m"},
       {" do not", " don't"},
       {" 's", "'s"},
       {" 've", "'ve"},
       {" 're", "'re"}}};
  for (const auto& [from, to] : kRules) {
    for (std::size_t at = 0; (at = token.find(from, at)) != std::string::npos; at += to.size()) {
      token.replace(at, from.size(), to);
    }
  }
}

/// WordPiece needs no room of its own.
struct NoRoom final : SubwordModel::Workspace {};

}  // namespace

WordPiece::WordPiece(WordPieceParts parts)
    : table_(parts.pieces),
      continuing_(without_prefix(parts.pieces, parts.continuing_prefix)),
      unknown_(parts.unknown),
      prefix_(std::move(parts.continuing_prefix)),
      longest_word_characters_(parts.longest_word_characters),
      tidy_punctuation_(parts.tidy_punctuation) {
  if (unknown_ < 0 || unknown_ >= table_.size()) {
    throw Error(Errc::corrupt, "WordPiece's unknown token " + std::to_string(unknown_) +
                                   " is outside the vocabulary of " +
                                   std::to_string(table_.size()));
  }
}

std::unique_ptr<SubwordModel::Workspace> WordPiece::workspace() const {
  return std::make_unique<NoRoom>();
}

void WordPiece::encode_word(std::string_view word, std::vector<std::int32_t>& ids,
                            Workspace&) const {
  if (std::count_if(word.begin(), word.end(), begins_character) > longest_word_characters_) {
    ids.push_back(unknown_);
    return;
  }
  const auto begun = ids.size();
  for (std::size_t start = 0; start < word.size();) {
    const auto& table = start == 0 ? table_ : continuing_;
    auto end = std::min(word.size(), start + table.longest_bytes());
    std::int32_t id = -1;
    for (; end > start; --end) {
      if (end < word.size() && !begins_character(word[end])) continue;
      id = table.find(word.substr(start, end - start));
      if (id >= 0) break;
    }
    if (id < 0) {
      ids.resize(begun);
      ids.push_back(unknown_);
      return;
    }
    ids.push_back(id);
    start = end;
  }
}

void WordPiece::append_text(std::int32_t id, bool first, std::string& text) const {
  std::string token(piece(id));
  if (!first && !token.empty()) {
    if (!prefix_.empty() && token.starts_with(prefix_)) {
      token.erase(0, prefix_.size());
    } else {
      token.insert(token.begin(), ' ');
    }
  }
  if (tidy_punctuation_) tidy(token);
  text += token;
}

void WordPiece::describe(std::string& description) const {
  description += "wordpiece(" + std::to_string(unknown_) + ',' + prefix_ + ',' +
                 std::to_string(longest_word_characters_) + ')';
  for (std::int64_t id = 0; id < size(); ++id) {
    const auto spelling = piece(static_cast<std::int32_t>(id));
    description += std::to_string(spelling.size()) + ':';
    description += spelling;
  }
}

}  // namespace mneme::text
