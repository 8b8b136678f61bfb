// Adapter files: what was trained beside a model's weights, as safetensors.
//
// Tensors `<parameter>.lora_a` and `<parameter>.lora_b`; the metadata say which model they are for.
#pragma once

#include "mneme/core/params.h"

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

namespace mneme {

struct LanguageModel;

/// What an adapter file says of itself.
struct AdapterInfo {
  std::string model;         ///< name of the model that it was trained on
  std::string model_digest;  ///< of that model
  std::string parameters;    ///< glob of the matrices that it was trained on
  std::int64_t rank = 0;
  double alpha = 0;
  std::string recipe;                        ///< digest of how it was trained; may be empty
  std::map<std::string, std::string> notes;  ///< what users of it want to know, by names of theirs
};

/// Writes the LoRA weights of `adapters` (names `<parameter>.lora_a|lora_b`) so that the file appears
/// whole or not at all; numbers are kept in `type`: "f32", "f16" or "bf16". Throws Error(invalid) for
/// a note under a name that the file itself uses and for weights that are not finite in that type;
/// as write_safetensors.
void save_adapter(const std::filesystem::path& path, const Params& adapters,
                  const AdapterInfo& info, std::string_view type = "f16");

/// What the file says of itself. Throws as SafetensorsFile, Error(mismatch) if it is no adapter file.
AdapterInfo read_adapter_info(const std::filesystem::path& path);

/// Attaches the adapter to the model, and makes it part of the model's digest: what was computed with
/// it and without it never mixes. Throws as read_adapter_info, Error(mismatch) if it was made for
/// another model or does not fit its matrices, Error(corrupt); the model then is as before.
AdapterInfo load_adapter(const std::filesystem::path& path, LanguageModel& model);

}  // namespace mneme
