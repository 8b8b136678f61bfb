// LogitsStage: one step between a model's logits and the choice of a token. Stages stand in a chain and run in the
// order in which they are written: "repetition_penalty(1.1) | top_k(40) | top_p(0.9) | temperature(0.8)".
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace mneme {

class LogitsStage {
 public:
  static constexpr std::string_view kKind = "logits_stage";
  static constexpr std::string_view kKindHelp = "changes logits before a token is chosen";
  using Make = std::unique_ptr<LogitsStage>();

  virtual ~LogitsStage() = default;
  /// Changes `logits` (one a token of the vocabulary) in place; minus infinity forbids a token, and at least one that
  /// was allowed stays so. `history`: prompt and generated ids, oldest first; ids outside the vocabulary are passed over.
  /// Any number of threads may use one stage.
  virtual void apply(std::span<float> logits, std::span<const std::int32_t> history) const = 0;
};

}  // namespace mneme
