// GGUF: the single-file format of llama.cpp, with its metadata and quantized tensors.
#pragma once

#include "mneme/weights/checkpoint.h"

#include <filesystem>
#include <memory>

namespace mneme::weights {

/// Opens a GGUF file of version 2 or 3, little-endian. Throws as open_checkpoint.
std::unique_ptr<Checkpoint> open_gguf(const std::filesystem::path& path);

}  // namespace mneme::weights
