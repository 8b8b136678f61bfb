#include "mneme/text/chat_template.h"

#include "mneme/core/error.h"
#include "mneme/weights/digests.h"

#include <algorithm>

namespace mneme {

namespace {

constexpr std::string_view kStart = "<|im_start|>", kEnd = "<|im_end|>";

/// Drops the white space around template tags that Jinja drops as chat templates are run
/// (trim_blocks, lstrip_blocks): what `-` asks for, the line feed behind a `{% %}`, the indentation
/// of one. `text` stands before the tag at `tag`.
std::string_view without_dropped_space(std::string_view text, std::string_view before,
                                       std::string_view tag) {
  constexpr std::string_view kSpace = " \t\r\n";
  if (before.ends_with("-%}") || before.ends_with("-}}")) {
    text.remove_prefix(std::min(text.size(), text.find_first_not_of(kSpace)));
  } else if (before.ends_with("%}") && text.starts_with('\n')) {
    text.remove_prefix(1);
  }
  const bool stripped = tag.starts_with("{%-") || tag.starts_with("{{-");
  if (stripped || tag.starts_with("{%")) {
    const auto end = text.find_last_not_of(stripped ? kSpace : " \t") + 1;
    const bool whole_line =
        end == 0 ? before.empty() || before.ends_with("%}") : text[end - 1] == '\n';
    if (stripped || whole_line) text = text.substr(0, end);
  }
  return text;
}

/// What stands between `{{` or `{%` and its end, in one spelling: no blanks, no brackets (they only
/// group sums), strings in single quotes with their escapes resolved.
std::string tag_in_one_spelling(std::string_view tag) {
  std::string spelled;
  for (std::size_t i = 0; i < tag.size(); ++i) {
    const char c = tag[i];
    if (c == '\'' || c == '"') {
      spelled += '\'';
      for (++i; i < tag.size() && tag[i] != c; ++i) {
        const bool escape = tag[i] == '\\' && i + 1 < tag.size();
        if (escape) ++i;
        spelled += escape && tag[i] == 'n' ? '\n' : tag[i];
      }
      spelled += '\'';
    } else if (std::string_view(" \t\r\n-()").find(c) == std::string_view::npos) {
      spelled += c;
    }
  }
  for (const std::string member : {"role", "content"}) {
    const auto dotted = "message." + member;
    for (std::size_t at = 0; (at = spelled.find(dotted)) != std::string::npos;) {
      spelled.replace(at, dotted.size(), "message['" + member + "']");
    }
  }
  return spelled;
}

/// Where the tag that begins at the start of `jinja` ends, its strings passed over; npos if it does
/// not.
std::size_t end_of_tag(std::string_view jinja) {
  const std::string_view close = jinja.starts_with("{{") ? "}}" : "%}";
  for (std::size_t i = 2; i < jinja.size(); ++i) {
    if (jinja[i] == '\'' || jinja[i] == '"') {
      const char quote = jinja[i];
      for (++i; i < jinja.size() && jinja[i] != quote; ++i) {
        if (jinja[i] == '\\') ++i;
      }
    } else if (jinja.substr(i).starts_with(close)) {
      return i + close.size();
    }
  }
  return std::string_view::npos;
}

/// A Jinja template in one spelling, so that the same template written in another way compares
/// equal. What is between tags is put out by Jinja and stays.
std::string in_one_spelling(std::string_view jinja) {
  std::string spelled;
  std::string_view before;
  while (!jinja.empty()) {
    const auto tag = std::min({jinja.find("{{"), jinja.find("{%"), jinja.size()});
    spelled += without_dropped_space(jinja.substr(0, tag), before, jinja.substr(tag));
    jinja.remove_prefix(tag);
    if (jinja.empty()) break;
    const auto end = std::min(end_of_tag(jinja), jinja.size());
    before = jinja.substr(0, end);
    spelled += tag_in_one_spelling(before);
    jinja.remove_prefix(end);
  }
  return spelled;
}

bool take(std::string_view& text, std::string_view start) {
  if (!text.starts_with(start)) return false;
  text.remove_prefix(start.size());
  return true;
}

[[noreturn]] void throw_unsupported(std::string_view jinja) {
  constexpr std::size_t kShown = 80;
  throw Error(Errc::unsupported,
              "the model's chat template is not ChatML, the only one supported: it begins with \"" +
                  std::string(jinja.substr(0, kShown)) + "\"; generate from plain text instead");
}

/// Calls `marker(text)` and `plain(text)` in the order in which they make up the chat.
template <class Marker, class Plain>
void walk(const std::optional<std::string>& default_system, std::span<const ChatMessage> messages,
          bool add_generation_prompt, Marker marker, Plain plain) {
  const auto message = [&](std::string_view role, std::string_view content) {
    marker(kStart);
    plain(std::string(role) + '\n' + std::string(content));
    marker(kEnd);
    plain("\n");
  };
  if (default_system && !messages.empty() && messages[0].role != "system")
    message("system", *default_system);
  for (const auto& [role, content] : messages) message(role, content);
  if (add_generation_prompt) {
    marker(kStart);
    plain("assistant\n");
  }
}

}  // namespace

ChatTemplate ChatTemplate::recognise(std::string_view jinja) {
  const auto spelled = in_one_spelling(jinja);
  std::string_view rest = spelled;
  take(rest, "{%ifnotadd_generation_promptisdefined%}{%setadd_generation_prompt=false%}{%endif%}");
  if (!take(rest, "{%formessageinmessages%}")) throw_unsupported(jinja);
  std::optional<std::string> system;
  if (take(rest, "{%ifloop.firstandmessages[0]['role']!='system'%}{{'<|im_start|>system\n")) {
    constexpr std::string_view kClose = "<|im_end|>\n'}}{%endif%}";
    const auto end = rest.find(kClose);
    if (end == std::string_view::npos) throw_unsupported(jinja);
    system = std::string(rest.substr(0, end));
    if (system->find('\'') != std::string::npos)
      throw_unsupported(jinja);  // the string ended before: another template
    rest.remove_prefix(end + kClose.size());
  }
  if (!take(rest, "{{'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>'+'\n'}}") &&
      !take(rest, "{{'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>\n'}}")) {
    throw_unsupported(jinja);
  }
  if (!take(rest, "{%endfor%}{%ifadd_generation_prompt%}{{'<|im_start|>assistant\n'}}{%endif%}") ||
      !rest.empty()) {
    throw_unsupported(jinja);
  }
  return ChatTemplate(std::move(system));
}

std::string ChatTemplate::render(std::span<const ChatMessage> messages,
                                 bool add_generation_prompt) const {
  std::string chat;
  const auto append = [&](std::string_view text) { chat += text; };
  walk(default_system_, messages, add_generation_prompt, append, append);
  return chat;
}

std::vector<std::int32_t> ChatTemplate::encode_chat(const Tokenizer& tokenizer,
                                                    std::span<const ChatMessage> messages,
                                                    bool add_generation_prompt) const {
  const auto marker_id = [&](std::string_view marker) {
    const auto id = tokenizer.id_of(marker);
    if (!id || !tokenizer.is_special(*id)) {
      throw Error(Errc::mismatch, "the tokenizer has no special token \"" + std::string(marker) +
                                      "\": it does not belong to a ChatML model");
    }
    return *id;
  };
  const auto start = marker_id(kStart), end = marker_id(kEnd);
  std::vector<std::int32_t> ids;
  walk(
      default_system_, messages, add_generation_prompt,
      [&](std::string_view marker) { ids.push_back(marker == kStart ? start : end); },
      [&](std::string_view text) {
        const auto plain = tokenizer.encode(text);
        ids.insert(ids.end(), plain.begin(), plain.end());
      });
  return ids;
}

std::string ChatTemplate::digest() const {
  return sha256_hex(
      std::string_view("mneme chat template 1: chatml\n" +
                       (default_system_ ? "system " + *default_system_ : "no system")));
}

}  // namespace mneme
