// What the sampler and several stages ask of logits as a distribution.
#pragma once

#include <cstddef>
#include <span>

namespace mneme::decode {

/// The index of the largest of `logits`, the smallest among equals. Throws Error(invalid) if there are none or one is
/// not a number.
[[nodiscard]] std::size_t index_of_largest(std::span<const float> logits);

/// out_i = e^(l_i - largest), exact but for a relative error of 3e-7 and the rounding of the difference to float, and 0
/// for what is below e^-79. `out` may be `logits`. Runs on the calling thread.
void weights(std::span<const float> logits, float largest, std::span<float> out);

/// ln(sum of e^l) to a relative error of the sum below 1e-6, given the largest of the logits.
/// Throws Error(invalid) if it is not finite.
[[nodiscard]] double log_sum_exp(std::span<const float> logits, float largest);

}  // namespace mneme::decode
