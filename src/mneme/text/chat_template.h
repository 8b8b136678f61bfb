// ChatTemplate: messages into the text, and the ids, that a chat model was trained on.
#pragma once

#include "mneme/text/tokenizer.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

struct ChatMessage {
  std::string role;  ///< "system", "user", "assistant", or what else the model knows
  std::string content;
};

/// The ChatML format: "<|im_start|>", role, line feed, content, "<|im_end|>", line feed for each
/// message; some models put a system message of their own before chats that begin without one.
class ChatTemplate {
 public:
  /// ChatML with, or without, a system message for chats that bring none.
  explicit ChatTemplate(std::optional<std::string> default_system = std::nullopt)
      : default_system_(std::move(default_system)) {}

  /// Recognises a model's Jinja template (tokenizer.chat_template). Throws `unsupported` on all
  /// that is not ChatML as above: running another one as if it were would ask the model in a form
  /// that it never saw.
  static ChatTemplate recognise(std::string_view jinja);

  /// The text, as the Jinja template renders it. A content may hold "<|im_end|>": never encode this
  /// with `parse_special`; `encode_chat` gives the ids. Without messages the text is only the
  /// generation prompt.
  [[nodiscard]] std::string render(std::span<const ChatMessage> messages,
                                   bool add_generation_prompt) const;

  /// The ids of `render`'s text. Only the markers of the format become special tokens: whatever a
  /// role or a content holds is plain text. Throws `mismatch` if the tokenizer does not have the
  /// markers.
  [[nodiscard]] std::vector<std::int32_t> encode_chat(const Tokenizer& tokenizer,
                                                      std::span<const ChatMessage> messages,
                                                      bool add_generation_prompt) const;

  [[nodiscard]] const std::optional<std::string>& default_system() const { return default_system_; }

  /// SHA-256 over all that decides the text, as 64 hex digits.
  [[nodiscard]] std::string digest() const;

 private:
  std::optional<std::string> default_system_;
};

}  // namespace mneme
