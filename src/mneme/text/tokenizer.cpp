#include "mneme/text/tokenizer.h"

#include "mneme/core/error.h"
#include "mneme/text/tokenizer_assembly.h"
#include "mneme/weights/digests.h"

#include <algorithm>
#include <array>
#include <limits>

namespace mneme::text {

namespace {

/// Control tokens that end a turn or a text in the chat formats that models are trained on.
constexpr std::array<std::string_view, 7> kEnds = {
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>",     "<|end_of_text|>",
    "<|end|>",    "<end_of_turn>", "<|end_of_turn|>"};

class AssembledTokenizer final : public Tokenizer {
 public:
  explicit AssembledTokenizer(TokenizerParts parts)
      : model_(std::move(parts.model)),
        normalizer_(std::move(parts.normalizer)),
        pre_tokenizer_(std::move(parts.pre_tokenizer)),
        added_(std::move(parts.added), normalizer_.get()),
        prefix_(std::move(parts.prefix)),
        suffix_(std::move(parts.suffix)),
        bos_(parts.bos),
        eos_(parts.eos),
        ends_(std::move(parts.more_ends)),
        size_(model_->size()) {
    for (const auto& token : added_.tokens()) {
      if (token.id < 0 || token.id >= kMaxVocabulary) {
        throw Error(Errc::corrupt, "tokenizer: added token \"" + token.content +
                                       "\" has the impossible id " + std::to_string(token.id));
      }
      size_ = std::max<std::int64_t>(size_, token.id + 1);
    }
    special_.resize(static_cast<std::size_t>(size_));
    for (const auto& token : added_.tokens())
      special_[static_cast<std::size_t>(token.id)] = token.special;
    if (eos_) ends_.push_back(*eos_);
    for (const auto end : kEnds) {
      const auto id = added_.id_of(end);
      if (id && is_special(*id)) ends_.push_back(*id);
    }
    std::sort(ends_.begin(), ends_.end());
    ends_.erase(std::unique(ends_.begin(), ends_.end()), ends_.end());
    check_ids();
    digest_ = digest_of_parts();
  }

  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view utf8,
                                                 const EncodeOptions& options) const override {
    if (utf8.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
      throw Error(
          Errc::full,
          "a text of " + std::to_string(utf8.size()) +
              " bytes is too long to encode at once: the limit is 2 GiB, encode it in parts");
    }
    constexpr std::size_t kUsualBytesPerToken = 4;
    std::vector<std::int32_t> ids;
    ids.reserve(prefix_.size() + suffix_.size() + utf8.size() / kUsualBytesPerToken + 8);
    if (options.add_special) ids.insert(ids.end(), prefix_.begin(), prefix_.end());
    const auto room = model_->workspace();
    PieceFunction words([&](std::string_view word) { model_->encode_word(word, ids, *room); });
    const auto words_and_tokens = [&](std::string_view normalized) {
      added_.cut(normalized, AddedTokens::Pass::normalized, options.parse_special,
                 [&](std::string_view stretch, std::optional<std::int32_t> id) {
                   id ? ids.push_back(*id) : pre_tokenizer_.split(stretch, words);
                 });
    };
    added_.cut(utf8, AddedTokens::Pass::raw, options.parse_special,
               [&](std::string_view stretch, std::optional<std::int32_t> id) {
                 if (id) {
                   ids.push_back(*id);
                 } else if (normalizer_) {
                   words_and_tokens(normalizer_->normalize(stretch));
                 } else {
                   words_and_tokens(stretch);
                 }
               });
    if (options.add_special) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
    return ids;
  }

  [[nodiscard]] std::int64_t lost_bytes(std::string_view utf8) const override {
    return model_->lost_bytes(utf8);
  }

  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids,
                                   bool skip_special) const override {
    std::string text;
    bool first = true;
    for (const auto id : ids) {
      check(id);
      if (skip_special && is_special(id)) continue;
      append_text(id, first, text);
      first = false;
    }
    return text;
  }

  [[nodiscard]] std::string token_bytes(std::int32_t id) const override {
    check(id);
    std::string text;
    append_text(id, false, text);
    return text;
  }

  [[nodiscard]] std::int64_t vocabulary_size() const override { return size_; }

  [[nodiscard]] std::optional<std::int32_t> id_of(std::string_view piece) const override {
    const auto id = added_.id_of(piece);
    return id ? id : model_->id_of(piece);
  }

  [[nodiscard]] bool is_special(std::int32_t id) const override {
    return id >= 0 && id < size_ && special_[static_cast<std::size_t>(id)];
  }
  [[nodiscard]] std::optional<std::int32_t> bos() const override { return bos_; }
  [[nodiscard]] std::optional<std::int32_t> eos() const override { return eos_; }
  [[nodiscard]] const std::vector<std::int32_t>& end_of_generation() const override {
    return ends_;
  }
  [[nodiscard]] std::string digest() const override { return digest_; }

 private:
  void check(std::int32_t id) const {
    if (id < 0 || id >= size_) {
      throw Error(Errc::invalid, "token id " + std::to_string(id) +
                                     " is outside the vocabulary of " + std::to_string(size_));
    }
  }

  void check_ids() const {
    for (const auto* list : {&prefix_, &suffix_, &ends_}) {
      for (const auto id : *list) check_file_id(id);
    }
    for (const auto id : {bos_, eos_}) {
      if (id) check_file_id(*id);
    }
  }

  void check_file_id(std::int32_t id) const {
    if (id < 0 || id >= size_) {
      throw Error(Errc::corrupt, "tokenizer: special token id " + std::to_string(id) +
                                     " is outside the vocabulary of " + std::to_string(size_));
    }
  }

  void append_text(std::int32_t id, bool first, std::string& text) const {
    // A byte-level vocabulary spells bytes; an added token's text stands for itself.
    if (const auto* token = added_.find(id);
        token && (id >= model_->size() || model_->piece(id).empty())) {
      if (!first && spaced_) text += ' ';
      text += token->content;
    } else if (token && !spaced_) {
      text += token->content;
    } else if (id < model_->size()) {
      model_->append_text(id, first, text);
    }
  }

  [[nodiscard]] std::string digest_of_parts() const {
    std::string parts = "mneme tokenizer 1\n";
    model_->describe(parts);
    parts += "\nnormalizer " + (normalizer_ ? normalizer_->describe() : "") + "\npre " +
             pre_tokenizer_.describe();
    parts += "\nadded ";
    added_.describe(parts);
    for (const auto* list : {&prefix_, &suffix_, &ends_}) {
      parts += "\nids";
      for (const auto id : *list) parts += ' ' + std::to_string(id);
    }
    parts +=
        "\nbos " + std::to_string(bos_.value_or(-1)) + " eos " + std::to_string(eos_.value_or(-1));
    return sha256_hex(std::string_view(parts));
  }

  std::unique_ptr<SubwordModel> model_;
  std::unique_ptr<Normalizer> normalizer_;
  PreTokenizer pre_tokenizer_;
  AddedTokens added_;
  std::vector<std::int32_t> prefix_, suffix_;
  std::optional<std::int32_t> bos_, eos_;
  std::vector<std::int32_t> ends_;
  std::int64_t size_;
  std::vector<bool> special_;
  bool spaced_ = model_->puts_spaces();
  std::string digest_;
};

}  // namespace

std::unique_ptr<Tokenizer> assemble(TokenizerParts parts) {
  return std::make_unique<AssembledTokenizer>(std::move(parts));
}

}  // namespace mneme::text
