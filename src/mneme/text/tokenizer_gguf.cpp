// The tokenizer of a GGUF file: tokenizer.ggml.* in its metadata.
#include "mneme/core/error.h"
#include "mneme/text/bpe.h"
#include "mneme/text/tokenizer_assembly.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace mneme {

namespace {

using nlohmann::json;

/// tokenizer.ggml.token_type
enum TokenType : std::int64_t { kControl = 3, kUserDefined = 4 };

/// What tokenizer.ggml.pre stands for.
struct PreTokenizerName {
  std::string_view name;
  std::string_view pattern;
  bool digits_apart;   // every numeral is cut off first
  bool ignore_merges;  // a word that is in the vocabulary is taken whole
  bool nfc;
};

// Converted to a Hugging Face tokenizer by transformers, "smollm" is GPT-2's pattern alone. Its
// original also cuts numerals off first; the vocabulary holds no merge with 0-9, so the two differ
// only on numerals such as " \u00bd".
constexpr PreTokenizerName kPreTokenizers[] = {
    {"default", text::kGpt2Pattern, false, false, false},
    {"gpt-2", text::kGpt2Pattern, false, false, false},
    {"gpt2", text::kGpt2Pattern, false, false, false},
    {"smollm", text::kGpt2Pattern, false, false, false},
    {"phi-2", text::kGpt2Pattern, false, false, false},
    {"olmo", text::kGpt2Pattern, false, false, false},
    {"starcoder", text::kGpt2Pattern, true, false, false},
    {"refact", text::kGpt2Pattern, true, false, false},
    {"llama-bpe", text::kLlama3Pattern, false, true, false},
    {"llama3", text::kLlama3Pattern, false, true, false},
    {"qwen2", text::kQwen2Pattern, false, false, true},
};

[[noreturn]] void throw_corrupt(const std::string& what) {
  throw Error(Errc::corrupt, "GGUF tokenizer: " + what);
}

const json& required_array(const json& metadata, const char* key) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) throw_corrupt(std::string("the metadata has no ") + key);
  if (!found->is_array()) throw_corrupt(std::string(key) + " is not an array");
  return *found;
}

std::optional<std::int32_t> optional_id(const json& metadata, const char* key) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) return std::nullopt;
  if (!found->is_number_integer()) throw_corrupt(std::string(key) + " is not a whole number");
  const auto id = found->get<std::int64_t>();
  if (id == -1 || id == 0xFFFFFFFF) return std::nullopt;  // two ways in which writers say "none"
  if (id < 0 || id >= text::kMaxVocabulary)
    throw_corrupt(std::string(key) + " is " + std::to_string(id));
  return static_cast<std::int32_t>(id);
}

std::string optional_string(const json& metadata, const char* key, const char* otherwise) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) return otherwise;
  if (!found->is_string()) throw_corrupt(std::string(key) + " is not a string");
  return found->get<std::string>();
}

bool optional_flag(const json& metadata, const char* key) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) return false;
  if (!found->is_boolean()) throw_corrupt(std::string(key) + " is not true or false");
  return found->get<bool>();
}

const PreTokenizerName& pre_tokenizer_named(const std::string& name) {
  std::string known;
  for (const auto& pre : kPreTokenizers) {
    if (pre.name == name) return pre;
    known += (known.empty() ? "" : ", ") + std::string(pre.name);
  }
  throw Error(Errc::unsupported, "GGUF tokenizer: pre-tokenizer \"" + name +
                                     "\" is not supported; supported are " + known);
}

std::pair<std::int32_t, std::int32_t> merge_of(const std::string& line, std::size_t rank,
                                               const text::PieceTable& spelled) {
  const auto blank = line.find(' ', 1);  // a piece is never empty and spells a blank otherwise
  if (blank == std::string::npos)
    throw_corrupt("merge " + std::to_string(rank) + " has no blank between two pieces");
  const std::string_view whole = line;
  const auto left = spelled.find(whole.substr(0, blank)),
             right = spelled.find(whole.substr(blank + 1));
  if (left < 0 || right < 0) {
    throw_corrupt("merge " + std::to_string(rank) + " \"" + line +
                  "\" names a piece that the vocabulary lacks");
  }
  return {left, right};
}

}  // namespace

std::unique_ptr<Tokenizer> tokenizer_from_gguf(const json& metadata) {
  if (!metadata.is_object()) throw_corrupt("the metadata is not an object");
  const auto model = optional_string(metadata, "tokenizer.ggml.model", "");
  if (model.empty())
    throw Error(Errc::unsupported, "GGUF tokenizer: the file has none (no tokenizer.ggml.model)");
  if (model != "gpt2") {
    throw Error(Errc::unsupported, "GGUF tokenizer: tokenizer.ggml.model \"" + model +
                                       "\" is not supported; supported is gpt2 (byte-level BPE)");
  }
  const auto& pre = pre_tokenizer_named(optional_string(metadata, "tokenizer.ggml.pre", "default"));
  const auto& tokens = required_array(metadata, "tokenizer.ggml.tokens");
  const auto& merges = required_array(metadata, "tokenizer.ggml.merges");
  const auto types = metadata.find("tokenizer.ggml.token_type");
  if (tokens.empty() || static_cast<std::int64_t>(tokens.size()) > text::kMaxVocabulary) {
    throw_corrupt("tokenizer.ggml.tokens has " + std::to_string(tokens.size()) + " entries");
  }
  if (types != metadata.end() && (!types->is_array() || types->size() != tokens.size())) {
    throw_corrupt("tokenizer.ggml.token_type does not have one entry for each of " +
                  std::to_string(tokens.size()) + " tokens");
  }

  text::TokenizerParts parts;
  text::BpeParts bpe;
  std::vector<std::string> spelled;
  spelled.reserve(tokens.size());
  bpe.pieces.reserve(tokens.size());
  bpe.control.resize(tokens.size());
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].is_string()) throw_corrupt("token " + std::to_string(id) + " is not a string");
    spelled.push_back(tokens[id].get_ref<const std::string&>());
    std::int64_t type = 0;
    if (types != metadata.end()) {
      const auto& value = (*types)[id];
      if (!value.is_number_integer())
        throw_corrupt("token_type " + std::to_string(id) + " is not a whole number");
      type = value.get<std::int64_t>();
    }
    const bool added = type == kControl || type == kUserDefined;
    bpe.pieces.push_back(added ? spelled.back() : text::bytes_of_spelling(spelled.back()));
    bpe.control[id] = type == kControl;
    if (added) {
      text::AddedToken token;
      token.id = static_cast<std::int32_t>(id);
      token.content = spelled.back();
      token.special = type == kControl;
      parts.added.push_back(std::move(token));
    }
  }
  const text::PieceTable by_spelling(spelled);
  bpe.merges.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    if (!merges[rank].is_string())
      throw_corrupt("merge " + std::to_string(rank) + " is not a string");
    bpe.merges.push_back(merge_of(merges[rank].get_ref<const std::string&>(), rank, by_spelling));
  }
  bpe.ignore_merges = pre.ignore_merges;
  parts.model = std::make_unique<text::Bpe>(std::move(bpe));
  if (pre.nfc) parts.normalizer = text::normalization_form(text::NormalizationForm::nfc);

  std::vector<std::unique_ptr<text::PreTokenizerStep>> steps;
  if (optional_flag(metadata, "tokenizer.ggml.add_space_prefix"))
    steps.push_back(text::prefix_space());
  if (pre.digits_apart) steps.push_back(text::split_digits(true));
  steps.push_back(text::split_by_pattern(pre.pattern, text::SplitBehavior::isolated, false));
  parts.pre_tokenizer = text::PreTokenizer(std::move(steps));

  parts.bos = optional_id(metadata, "tokenizer.ggml.bos_token_id");
  parts.eos = optional_id(metadata, "tokenizer.ggml.eos_token_id");
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    if (const auto id = optional_id(metadata, key)) parts.more_ends.push_back(*id);
  }
  if (optional_flag(metadata, "tokenizer.ggml.add_bos_token")) {
    if (!parts.bos) throw_corrupt("add_bos_token is set, but there is no bos_token_id");
    parts.prefix.push_back(*parts.bos);
  }
  if (optional_flag(metadata, "tokenizer.ggml.add_eos_token")) {
    if (!parts.eos) throw_corrupt("add_eos_token is set, but there is no eos_token_id");
    parts.suffix.push_back(*parts.eos);
  }
  return text::assemble(std::move(parts));
}

}  // namespace mneme
