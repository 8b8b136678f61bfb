// generate: one sequence, token by token, with stop rules and streamed text.
#pragma once

#include "mneme/core/spec.h"
#include "mneme/core/state.h"
#include "mneme/models/language_model.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

struct GenerateOptions {
  std::int64_t max_tokens = 256;
  Chain sampler;                  ///< stages of kind "logits_stage"; empty: greedy
  std::uint64_t seed = 0;         ///< of the sampler
  std::vector<std::string> stop;  ///< the text ends before the first of these
  std::optional<std::vector<std::int32_t>>
      stop_ids;                      ///< absent: the tokenizer's end_of_generation()
  std::int64_t prefill_chunk = 512;  ///< prompt tokens of one pass
  /// Gets the text as it comes, always whole characters; false stops, as Ctrl-C does. Between the chunks of a long
  /// prompt it is asked with an empty text.
  std::function<bool(std::string_view)> on_text;
};

/// What was generated and how.
struct Generation {
  std::string text;  ///< without stop strings, end tokens and other special tokens; valid UTF-8
  std::vector<std::int32_t> ids;  ///< every token taken but the end token
  std::vector<double>
      log_probabilities;  ///< of every token taken, by the model itself; the end token's is the last
  std::string
      stop_reason;  ///< "eos", "stop" (a stop string), "length", "context" (it is full), "interrupted"
  /// Tokens that the State has yet to be fed to hold all that was said: put them before the next prompt.
  std::vector<std::int32_t> pending;
  std::int64_t prompt_tokens = 0;  ///< tokens of the prompt that were fed
  double prefill_seconds = 0;      ///< feeding the prompt
  double first_token_seconds = 0;  ///< from the call to the first token; 0 if there was none
  double decode_seconds = 0;       ///< from the first token to the end
};

namespace decode {

/// Feeds `prompt` in chunks behind what `state` holds (an empty State is started) and generates.
/// Throws Error(invalid) for an empty prompt or a State of several rows, Error(full) for a prompt that does not fit the
/// model's context; nothing is ever cut silently. After an exception the State holds what had been fed.
Generation generate(const LanguageModel& model, const std::vector<std::int32_t>& prompt,
                    State& state, const GenerateOptions& options = {});

}  // namespace decode
}  // namespace mneme
