// The second pass over a prompt that some KV plans score by: the model is made to write the text down once more, and what
// it looks at meanwhile is noted.
//
//   for each chunk of the text:   request, the last tokens of the chunk before, `then`, the chunk itself (teacher forced)
//
// Each is read behind the whole text in a fork, which is thrown away: the state keeps only what was noted.
// source: Kim et al. 2025, arXiv:2505.23416
#pragma once

#include "mneme/core/state.h"
#include "mneme/models/language_model.h"

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace mneme {

/// What asks a model for a text that it has read, in tokens, and how the text is cut.
struct Reconstruction {
  std::vector<std::int32_t> first,  ///< for the text's first chunk
      next,                         ///< for another; `overlap` tokens that stand before it follow
      then;                         ///< after either
  std::int64_t chunk = 2000, overlap = 8, sinks = 4;
  std::int64_t feed = 512;             ///< tokens of a call
  std::function<void()> between = {};  ///< called before each, and may throw
};

/// The request in words, as a model's tokenizer has it.
Reconstruction reconstruction(const Tokenizer& tokenizer);

/// Runs the pass over `ids`, the last tokens that the state has seen, where its plan needs one; else does nothing. Throws
/// Error(unsupported) for a state of several rows, Error(full) where the model's context has no room for it.
void reconstruct(const Model& model, Compute compute, State& state,
                 std::span<const std::int32_t> ids, const Reconstruction& how);

/// Ends a prompt whose tokens were `ids`: stages act that wait for it, after the second pass where they need one.
/// `compute`: of the second pass; automatic: the model's.
void finish_prompt(const LanguageModel& model, State& state, std::span<const std::int32_t> ids,
                   const std::function<void()>& between = {}, Compute compute = Compute::automatic);

}  // namespace mneme
