// Checkpoint: one model on disk, whatever its format: weights by name, metadata, digest.
#pragma once

#include "mneme/weights/safetensors.h"
#include "mneme/weights/weight_tensor.h"

#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// One model on disk. Files are mapped: opening costs little, weights are read when touched.
class Checkpoint {
 public:
  Checkpoint() = default;
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;
  virtual ~Checkpoint() = default;

  /// "gguf", "safetensors" or "huggingface".
  [[nodiscard]] virtual std::string format() const = 0;
  /// What was opened: a file or a directory.
  [[nodiscard]] virtual std::filesystem::path path() const = 0;

  /// GGUF: one object of the key/value pairs as they stand ("general.architecture": "llama", ...);
  /// strings are bytes as stored, not necessarily UTF-8. safetensors: the header's `__metadata__`,
  /// strings only. Hugging Face: one entry a file that is there: "config", "generation_config",
  /// "tokenizer_config", "modules", "sentence_bert_config", "config_sentence_transformers", and
  /// "pooling", the configuration of the pooling module.
  [[nodiscard]] virtual const nlohmann::json& metadata() const = 0;

  /// The weights in the order of the file, without integer and boolean buffers.
  [[nodiscard]] virtual std::vector<std::string> names() const = 0;
  [[nodiscard]] virtual bool has(std::string_view name) const = 0;
  /// The weight of that name. Throws `not_found` with the nearest name, `unsupported` if its
  /// storage type is none of WeightType.
  [[nodiscard]] virtual WeightTensor tensor(std::string_view name) const = 0;

  /// SHA-256 (hex) over the weights' bytes and the configuration that decides what they compute.
  /// For a single file it is that file's SHA-256; for a directory that of the list of its relevant
  /// files' names and digests. Computed at the first call and remembered between runs (see
  /// digests.h).
  [[nodiscard]] virtual std::string digest() const = 0;
};

/// Opens a GGUF file (version 2 or 3), a safetensors file, or a Hugging Face directory (config.json
/// with model.safetensors or model.safetensors.index.json). Throws `not_found`, `io`, `corrupt`,
/// or `unsupported` for another format or version.
std::unique_ptr<Checkpoint> open_checkpoint(const std::filesystem::path& path);

}  // namespace mneme
