// Checkpoints made of safetensors: a single file, or a Hugging Face directory.
#pragma once

#include "mneme/weights/checkpoint.h"

#include <filesystem>
#include <memory>

namespace mneme::weights {

/// Opens one safetensors file. Throws as open_checkpoint.
std::unique_ptr<Checkpoint> open_safetensors(const std::filesystem::path& path);

/// Opens a directory with config.json and model.safetensors, or model.safetensors.index.json and
/// the files that it names; also a sentence-transformers directory whose transformer lies in a
/// folder of its own. Throws as open_checkpoint.
std::unique_ptr<Checkpoint> open_huggingface(const std::filesystem::path& directory);

}  // namespace mneme::weights
