// Greedy decoding of several sequences at once, as the rows of one State.
#pragma once

#include "mneme/core/state.h"
#include "mneme/models/language_model.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace mneme {

/// What one row said.
struct RowAnswer {
  std::vector<std::int32_t> ids;          ///< every token taken but the end token
  std::vector<double> log_probabilities;  ///< of every token taken; the end token's is the last
  std::string text;    ///< of `ids`, without special tokens; the bytes as they are
  bool ended = false;  ///< an end token came; else the tokens or the context were used up
};

struct DecodeRowsOptions {
  std::int64_t max_tokens = 24;  ///< of each row, the end token not counted
  /// Whether a row ends before this token, given its id and bytes; empty: at the tokenizer's end_of_generation().
  std::function<bool(std::int32_t id, const std::string& bytes)> stops;
  std::optional<Compute> compute = {};  ///< number type of products, if another than the model's
};

namespace decode {

/// Ends a row before a token whose text holds a line feed and at the given ids.
[[nodiscard]] std::function<bool(std::int32_t, const std::string&)> stops_at_line_feed(
    std::vector<std::int32_t> ids);

/// Decodes all rows of `state` greedily from the logits of their last tokens, `first_logits` [B,V]. Rows that end leave
/// the batch, so a step costs only what the rows still speaking cost; `state` is used up by this. Every row is what it
/// would be alone. Throws Error(invalid) where rows and logits do not match or are not finite.
std::vector<RowAnswer> decode_rows(const LanguageModel& model, State& state,
                                   const at::Tensor& first_logits,
                                   const DecodeRowsOptions& options = {});

}  // namespace decode
}  // namespace mneme
