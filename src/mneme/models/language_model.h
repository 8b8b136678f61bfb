// A loaded language model: weights, tokenizer, chat template and digest, as one thing to generate and read with.
#pragma once

#include "mneme/core/params.h"
#include "mneme/models/adapter_file.h"
#include "mneme/models/model.h"
#include "mneme/text/chat_template.h"
#include "mneme/text/tokenizer.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace mneme {

struct LoadOptions {
  Compute compute = Compute::automatic;
  /// A known name or an adapter file; empty or "none": the weights as they are.
  std::string adapter = {};
};

/// Everything a verb needs of one model.
struct LanguageModel {
  std::string name, path, architecture;  ///< name as asked for, file or directory, "llama"
  std::string digest;                    ///< SHA-256 of weights, configuration and adapter
  Compute compute = Compute::automatic;
  Params params;
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat;    ///< absent when the file names none
  std::optional<AdapterInfo> adapter;  ///< of the adapter that it was loaded with

  /// [1,T] ids -> output; the usual single-sequence call.
  Output run(const std::vector<std::int32_t>& ids, State& state,
             LogitsAt at = LogitsAt::last) const;
};

/// Loads a model by its name ("smollm2") or path (GGUF, safetensors, Hugging Face directory).
/// Throws Error(not_found) with the known names, Error(unsupported) for an architecture that is not built in; for the
/// adapter as locate_adapter and load_adapter.
std::unique_ptr<LanguageModel> load_language_model(const std::string& name_or_path,
                                                   const LoadOptions& options = {});

}  // namespace mneme
