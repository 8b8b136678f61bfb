// Sampler: the next token from logits, by a chain of stages and a seed; without a chain the most likely one.
#pragma once

#include "mneme/core/generator.h"
#include "mneme/core/spec.h"
#include "mneme/decode/logits_stage.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace mneme {

/// The usual settings of a sampler as people give them one by one.
struct SamplerSettings {
  double temperature = 0;               ///< 0: greedy
  std::int64_t top_k = 0;               ///< 0: off
  double top_p = 1;                     ///< 1: off
  double min_p = 0;                     ///< 0: off
  double repetition_penalty = 1;        ///< 1: off
  std::int64_t repetition_window = 64;  ///< ids that the penalty looks at; 0: all
};

namespace decode {

/// The chain for these settings, in llama.cpp's order (penalty, top-k, top-p, min-p, temperature), without the stages
/// that are off; empty if what is left is greedy.
[[nodiscard]] Chain sampler_chain(const SamplerSettings& settings);

/// A token and how likely the model held it.
struct Pick {
  std::int32_t id = 0;
  double log_probability = 0;
};

/// The most likely token of `logits` [V], the smallest id among equals, with its log-probability.
/// Throws Error(invalid) if the logits are empty or not finite.
[[nodiscard]] Pick most_likely(std::span<const float> logits);

}  // namespace decode

/// Chooses one token after another. Not for several threads at once.
class Sampler {
 public:
  /// An empty chain is greedy. The same chain, seed and logits give the same tokens. Throws Error(usage) on a stage that
  /// does not exist or whose options are wrong.
  explicit Sampler(const Chain& chain, std::uint64_t seed = 0);

  /// The next token by `logits` [V] after the ids of `history` (prompt and generated, oldest first).
  /// Throws Error(invalid) if the logits are empty or not finite.
  std::int32_t sample(std::span<const float> logits, std::span<const std::int32_t> history = {});
  /// The same for a tensor [V] or [1,V] of any type and device.
  std::int32_t sample(const at::Tensor& logits, std::span<const std::int32_t> history = {});

  /// The natural logarithm of the probability that the model itself, before any stage, gave to the last token.
  [[nodiscard]] double last_log_probability() const { return last_log_probability_; }

 private:
  std::vector<std::unique_ptr<LogitsStage>> stages_;
  Generator generator_;
  double last_log_probability_ = 0;
  std::vector<float> changed_;      // [V], kept between tokens as the next is
  std::vector<double> cumulative_;  // [V]
};

}  // namespace mneme
