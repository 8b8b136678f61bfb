// The tokenizer of a Hugging Face directory: tokenizer.json, or the vocab.txt of older BERT models.
#include "mneme/core/error.h"
#include "mneme/text/bpe.h"
#include "mneme/text/tokenizer_assembly.h"
#include "mneme/text/wordpiece.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace mneme {

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr int kMaxDepth = 16;  // of sequences in sequences

std::string read_file(const fs::path& path) {
  constexpr std::uintmax_t kLargestFile = std::uintmax_t{512} << 20;
  std::error_code status;
  const auto size = fs::file_size(path, status);
  if (status) throw Error(Errc::io, "cannot read " + path.string() + ": " + status.message());
  if (size > kLargestFile) {
    throw Error(Errc::corrupt,
                path.string() + " is no tokenizer: it has " + std::to_string(size) + " bytes");
  }
  std::ifstream file(path, std::ios::binary);
  std::string content(static_cast<std::size_t>(size), '\0');
  if (!file || !file.read(content.data(), static_cast<std::streamsize>(size))) {
    throw Error(Errc::io, "cannot read " + path.string());
  }
  return content;
}

json read_json(const fs::path& path) {
  try {
    return json::parse(read_file(path));
  } catch (const json::exception& error) {
    throw Error(Errc::corrupt, path.string() + " is not JSON: " + error.what());
  }
}

/// The member, or null where it is missing.
const json& member(const json& object, const char* key) {
  static const json kNull;
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

/// The member, or a default where it is missing or null.
template <class T>
T member_or(const json& object, const char* key, T otherwise) {
  const auto& value = member(object, key);
  return value.is_null() ? otherwise : value.get<T>();
}

std::string type_of(const json& part) { return member_or<std::string>(part, "type", ""); }

[[noreturn]] void throw_unsupported(const std::string& what) {
  throw Error(Errc::unsupported, "tokenizer.json: " + what + " is not supported");
}

std::int32_t checked_id(const json& value, const std::string& of) {
  const auto id = value.get<std::int64_t>();
  if (id < 0 || id >= text::kMaxVocabulary) {
    throw Error(Errc::corrupt, "tokenizer.json: id " + std::to_string(id) + " of " + of +
                                   " is outside 0.." + std::to_string(text::kMaxVocabulary - 1));
  }
  return static_cast<std::int32_t>(id);
}

std::unique_ptr<text::Normalizer> normalizer_of(const json& part, int depth = 0) {
  if (part.is_null()) return nullptr;
  if (depth > kMaxDepth) throw_unsupported("a normalizer nested this deep");
  const auto type = type_of(part);
  if (type == "BertNormalizer") {
    text::BertNormalizerOptions options;
    options.clean_text = member_or(part, "clean_text", true);
    options.handle_chinese_chars = member_or(part, "handle_chinese_chars", true);
    options.lowercase = member_or(part, "lowercase", true);
    options.strip_accents = member_or(part, "strip_accents", options.lowercase);
    return text::bert_normalizer(options);
  }
  if (type == "NFC") return text::normalization_form(text::NormalizationForm::nfc);
  if (type == "NFD") return text::normalization_form(text::NormalizationForm::nfd);
  if (type == "NFKC") return text::normalization_form(text::NormalizationForm::nfkc);
  if (type == "NFKD") return text::normalization_form(text::NormalizationForm::nfkd);
  if (type == "Lowercase") return text::lowercase_normalizer();
  if (type == "StripAccents") return text::strip_accents_normalizer();
  if (type == "Sequence") {
    std::vector<std::unique_ptr<text::Normalizer>> parts;
    for (const auto& inner : part.at("normalizers"))
      parts.push_back(normalizer_of(inner, depth + 1));
    std::erase(parts, nullptr);
    return text::normalizer_sequence(std::move(parts));
  }
  throw_unsupported("normalizer \"" + type + '"');
}

text::SplitBehavior behavior_named(const std::string& name) {
  constexpr std::pair<std::string_view, text::SplitBehavior> kBehaviors[] = {
      {"Removed", text::SplitBehavior::removed},
      {"Isolated", text::SplitBehavior::isolated},
      {"MergedWithPrevious", text::SplitBehavior::merged_with_previous},
      {"MergedWithNext", text::SplitBehavior::merged_with_next},
      {"Contiguous", text::SplitBehavior::contiguous}};
  for (const auto& [known, behavior] : kBehaviors) {
    if (known == name) return behavior;
  }
  throw_unsupported("split behavior \"" + name + '"');
}

/// The steps in the file's order, and whether the last one turned the text into bytes.
struct Steps {
  std::vector<std::unique_ptr<text::PreTokenizerStep>> steps;
  bool byte_level = false;
};

void add_steps(const json& part, Steps& out, int depth = 0) {
  if (part.is_null()) return;
  if (depth > kMaxDepth) throw_unsupported("a pre-tokenizer nested this deep");
  const auto type = type_of(part);
  if (type == "Sequence") {
    for (const auto& inner : part.at("pretokenizers")) add_steps(inner, out, depth + 1);
    return;
  }
  if (out.byte_level) throw_unsupported("pre-tokenizer \"" + type + "\" behind ByteLevel");
  if (type == "ByteLevel") {
    if (member_or(part, "add_prefix_space", true)) out.steps.push_back(text::prefix_space());
    if (member_or(part, "use_regex", true)) {
      out.steps.push_back(
          text::split_by_pattern(text::kGpt2Pattern, text::SplitBehavior::isolated, false));
    }
    out.byte_level = true;
  } else if (type == "Digits") {
    out.steps.push_back(text::split_digits(member_or(part, "individual_digits", false)));
  } else if (type == "Split") {
    const auto behavior = behavior_named(part.at("behavior").get<std::string>());
    const bool invert = member_or(part, "invert", false);
    const auto& pattern = part.at("pattern");
    if (pattern.contains("Regex")) {
      out.steps.push_back(
          text::split_by_pattern(pattern["Regex"].get<std::string>(), behavior, invert));
    } else {
      out.steps.push_back(
          text::split_by_string(pattern.at("String").get<std::string>(), behavior, invert));
    }
  } else if (type == "BertPreTokenizer") {
    out.steps.push_back(text::split_like_bert());
  } else if (type == "WhitespaceSplit") {
    out.steps.push_back(text::split_by_pattern("\\s", text::SplitBehavior::removed, false));
  } else {
    throw_unsupported("pre-tokenizer \"" + type + '"');
  }
}

/// The vocabulary's spellings by id.
std::vector<std::string> spellings_of(const json& vocabulary) {
  if (!vocabulary.is_object())
    throw Error(Errc::corrupt, "tokenizer.json: model.vocab is not an object");
  std::vector<std::string> spelled;
  for (const auto& [spelling, value] : vocabulary.items()) {
    const auto id = static_cast<std::size_t>(checked_id(value, "a vocabulary entry"));
    if (id >= spelled.size()) spelled.resize(std::max(id + 1, vocabulary.size()));
    spelled[id] = spelling;
  }
  while (!spelled.empty() && spelled.back().empty()) spelled.pop_back();
  return spelled;
}

std::unique_ptr<text::SubwordModel> bpe_of(const json& model,
                                           const std::vector<text::AddedToken>& added) {
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!member_or<std::string>(model, affix, "").empty())
      throw_unsupported(std::string("BPE with ") + affix);
  }
  if (member_or(model, "dropout", 0.0) != 0.0) throw_unsupported("BPE with dropout");
  if (member_or(model, "byte_fallback", false)) throw_unsupported("BPE with byte_fallback");
  const auto spelled = spellings_of(model.at("vocab"));
  text::BpeParts parts;
  parts.pieces.reserve(spelled.size());
  for (const auto& spelling : spelled) parts.pieces.push_back(text::bytes_of_spelling(spelling));
  parts.control.resize(spelled.size());
  for (const auto& token : added) {
    if (static_cast<std::size_t>(token.id) < spelled.size()) {
      parts.control[static_cast<std::size_t>(token.id)] = token.special;
    }
  }
  const text::PieceTable by_spelling(spelled);
  for (const auto& merge : model.at("merges")) {
    std::string left, right;
    if (merge.is_string()) {
      const auto line = merge.get<std::string>();
      const auto blank = line.find(' ');
      left = line.substr(0, blank);
      if (blank != std::string::npos) right = line.substr(blank + 1);
    } else {
      left = merge.at(0).get<std::string>();
      right = merge.at(1).get<std::string>();
    }
    const auto left_id = by_spelling.find(left), right_id = by_spelling.find(right);
    if (left_id < 0 || right_id < 0) {
      throw Error(Errc::corrupt, "tokenizer.json: merge " + std::to_string(parts.merges.size()) +
                                     " \"" + left + ' ' + right +
                                     "\" names a piece that the vocabulary lacks");
    }
    parts.merges.emplace_back(left_id, right_id);
  }
  if (const auto unknown = member_or<std::string>(model, "unk_token", ""); !unknown.empty()) {
    parts.unknown = by_spelling.id_of(unknown);
    if (!parts.unknown)
      throw Error(Errc::corrupt,
                  "tokenizer.json: unk_token \"" + unknown + "\" is not in the vocabulary");
  }
  parts.fuse_unknown = member_or(model, "fuse_unk", false);
  parts.ignore_merges = member_or(model, "ignore_merges", false);
  return std::make_unique<text::Bpe>(std::move(parts));
}

std::unique_ptr<text::SubwordModel> wordpiece_of(const json& model, const json& decoder) {
  text::WordPieceParts parts;
  parts.pieces = spellings_of(model.at("vocab"));
  parts.continuing_prefix = member_or<std::string>(model, "continuing_subword_prefix", "##");
  parts.longest_word_characters = member_or<std::int64_t>(model, "max_input_chars_per_word", 100);
  parts.tidy_punctuation = decoder.is_null() || member_or(decoder, "cleanup", true);
  const auto unknown = member_or<std::string>(model, "unk_token", "[UNK]");
  const auto found = std::find(parts.pieces.begin(), parts.pieces.end(), unknown);
  if (found == parts.pieces.end()) {
    throw Error(Errc::corrupt,
                "tokenizer.json: unk_token \"" + unknown + "\" is not in the vocabulary");
  }
  parts.unknown = static_cast<std::int32_t>(found - parts.pieces.begin());
  return std::make_unique<text::WordPiece>(std::move(parts));
}

/// What the post-processor puts around one text.
void add_template(const json& part, text::TokenizerParts& parts, int depth = 0) {
  if (part.is_null()) return;
  if (depth > kMaxDepth) throw_unsupported("a post-processor nested this deep");
  const auto type = type_of(part);
  if (type == "ByteLevel") return;  // offsets only
  if (type == "Sequence") {
    for (const auto& inner : part.at("processors")) add_template(inner, parts, depth + 1);
  } else if (type == "TemplateProcessing") {
    bool behind = false;
    for (const auto& item : part.at("single")) {
      if (item.contains("Sequence")) {
        if (behind) throw_unsupported("a template that repeats the text");
        behind = true;
        continue;
      }
      const auto name = item.at("SpecialToken").at("id").get<std::string>();
      auto& side = behind ? parts.suffix : parts.prefix;
      for (const auto& id : part.at("special_tokens").at(name).at("ids"))
        side.push_back(checked_id(id, name));
    }
    if (!behind) throw_unsupported("a template without the text");
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    parts.prefix.push_back(checked_id(part.at("cls").at(1), "cls"));
    parts.suffix.push_back(checked_id(part.at("sep").at(1), "sep"));
  } else {
    throw_unsupported("post-processor \"" + type + '"');
  }
}

std::vector<text::AddedToken> added_tokens_of(const json& list) {
  std::vector<text::AddedToken> added;
  if (list.is_null()) return added;
  for (const auto& entry : list) {
    text::AddedToken token;
    token.content = entry.at("content").get<std::string>();
    token.id = checked_id(entry.at("id"), '"' + token.content + '"');
    token.special = member_or(entry, "special", false);
    token.single_word = member_or(entry, "single_word", false);
    token.lstrip = member_or(entry, "lstrip", false);
    token.rstrip = member_or(entry, "rstrip", false);
    token.normalized = member_or(entry, "normalized", !token.special);
    added.push_back(std::move(token));
  }
  return added;
}

text::TokenizerParts parts_of(const json& file) {
  if (!file.is_object()) throw Error(Errc::corrupt, "tokenizer.json: not an object");
  text::TokenizerParts parts;
  parts.added = added_tokens_of(member(file, "added_tokens"));
  parts.normalizer = normalizer_of(member(file, "normalizer"));
  Steps steps;
  add_steps(member(file, "pre_tokenizer"), steps);
  const auto& model = file.at("model");
  auto type = type_of(model);
  if (type.empty())
    type = model.contains("merges") ? "BPE" : "WordPiece";  // files before 2020 do not say
  if (type == "BPE") {
    if (!steps.byte_level) throw_unsupported("BPE without the ByteLevel pre-tokenizer");
    parts.model = bpe_of(model, parts.added);
  } else if (type == "WordPiece") {
    if (steps.byte_level) throw_unsupported("WordPiece with the ByteLevel pre-tokenizer");
    parts.model = wordpiece_of(model, member(file, "decoder"));
  } else {
    throw_unsupported("model \"" + type + '"');
  }
  parts.pre_tokenizer = text::PreTokenizer(std::move(steps.steps));
  add_template(member(file, "post_processor"), parts);
  return parts;
}

/// A token that a configuration names: a string, or an object with its content.
std::optional<std::string> named_token(const json& config, const char* key) {
  const auto& value = member(config, key);
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object()) return value.at("content").get<std::string>();
  return std::nullopt;
}

std::optional<std::int32_t> id_of(const text::TokenizerParts& parts, const std::string& content) {
  for (const auto& token : parts.added) {
    if (token.content == content) return token.id;
  }
  return parts.model->id_of(content);
}

/// BOS, EOS and other ends, from the files beside the tokenizer.
void add_configured_ids(const fs::path& directory, text::TokenizerParts& parts) {
  for (const char* name : {"special_tokens_map.json", "tokenizer_config.json"}) {
    if (!fs::exists(directory / name)) continue;
    const auto config = read_json(directory / name);
    if (!config.is_object()) continue;
    if (const auto bos = named_token(config, "bos_token")) parts.bos = id_of(parts, *bos);
    if (const auto eos = named_token(config, "eos_token")) parts.eos = id_of(parts, *eos);
  }
  if (fs::exists(directory / "generation_config.json")) {
    const auto config = read_json(directory / "generation_config.json");
    const auto& ends = config.is_object() ? member(config, "eos_token_id") : json();
    if (ends.is_number_integer()) parts.more_ends.push_back(checked_id(ends, "eos_token_id"));
    if (ends.is_array()) {
      for (const auto& id : ends) parts.more_ends.push_back(checked_id(id, "eos_token_id"));
    }
  }
}

text::TokenizerParts parts_of_vocabulary(const fs::path& path) {
  const auto content = read_file(path);
  text::WordPieceParts model;
  for (std::size_t begin = 0; begin < content.size();) {
    auto end = content.find('\n', begin);
    if (end == std::string::npos) end = content.size();
    auto line = content.substr(begin, end - begin);
    if (line.ends_with('\r')) line.pop_back();
    model.pieces.push_back(std::move(line));
    begin = end + 1;
  }
  if (static_cast<std::int64_t>(model.pieces.size()) > text::kMaxVocabulary) {
    throw Error(Errc::corrupt, path.string() + " has " + std::to_string(model.pieces.size()) +
                                   " lines: no vocabulary");
  }
  text::TokenizerParts parts;
  const auto special = [&](const char* name) {
    const auto found = std::find(model.pieces.begin(), model.pieces.end(), name);
    if (found == model.pieces.end()) {
      throw Error(Errc::corrupt, path.string() + " has no line \"" + name +
                                     "\": it is not the vocabulary of a BERT");
    }
    text::AddedToken token;
    token.id = static_cast<std::int32_t>(found - model.pieces.begin());
    token.content = name;
    token.special = true;
    parts.added.push_back(token);
    return token.id;
  };
  model.unknown = special("[UNK]");
  parts.prefix.push_back(special("[CLS]"));
  parts.suffix.push_back(special("[SEP]"));
  for (const char* optional : {"[PAD]", "[MASK]"}) {
    if (std::find(model.pieces.begin(), model.pieces.end(), optional) != model.pieces.end())
      special(optional);
  }
  text::BertNormalizerOptions options;
  if (const auto beside = path.parent_path() / "tokenizer_config.json"; fs::exists(beside)) {
    const auto config = read_json(beside);
    options.lowercase = member_or(config, "do_lower_case", true);
    options.handle_chinese_chars = member_or(config, "tokenize_chinese_chars", true);
    options.strip_accents = member_or(config, "strip_accents", options.lowercase);
  }
  parts.normalizer = text::bert_normalizer(options);
  std::vector<std::unique_ptr<text::PreTokenizerStep>> steps;
  steps.push_back(text::split_like_bert());
  parts.pre_tokenizer = text::PreTokenizer(std::move(steps));
  parts.model = std::make_unique<text::WordPiece>(std::move(model));
  return parts;
}

}  // namespace

std::unique_ptr<Tokenizer> tokenizer_from_directory(const fs::path& directory_or_file) {
  auto path = directory_or_file;
  std::error_code status;
  if (fs::is_directory(path, status)) {
    path = directory_or_file / "tokenizer.json";
    if (!fs::exists(path, status)) path = directory_or_file / "vocab.txt";
    if (!fs::exists(path, status)) {
      throw Error(Errc::not_found,
                  directory_or_file.string() + " has neither tokenizer.json nor vocab.txt");
    }
  } else if (!fs::exists(path, status)) {
    throw Error(Errc::not_found,
                "no tokenizer at " + path.string() + ": no such file or directory");
  }
  try {
    auto parts = path.extension() == ".txt" ? parts_of_vocabulary(path) : parts_of(read_json(path));
    add_configured_ids(path.parent_path(), parts);
    return text::assemble(std::move(parts));
  } catch (const json::exception& error) {
    throw Error(Errc::corrupt, "tokenizer of " + path.string() + ": " + error.what());
  } catch (const Error& error) {
    const std::string what = error.what();
    if (what.find(path.string()) != std::string::npos) throw;
    throw Error(error.code(), what + " (" + path.string() + ')');
  }
}

}  // namespace mneme
