#include "mneme/decode/sampler.h"

#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/decode/distribution.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <fmt/format.h>

namespace mneme {
namespace decode {

Chain sampler_chain(const SamplerSettings& s) {
  Chain out;
  if (s.repetition_penalty != 1) {
    out.push_back({"repetition_penalty",
                   {{"penalty", {s.repetition_penalty}}, {"window", {s.repetition_window}}}});
  }
  if (s.top_k != 0) out.push_back({"top_k", {{"k", {s.top_k}}}});
  if (s.top_p != 1) out.push_back({"top_p", {{"p", {s.top_p}}}});
  if (s.min_p != 0) out.push_back({"min_p", {{"p", {s.min_p}}}});
  // The other stages keep the most likely token, so that only a penalty matters to a greedy choice.
  if (s.temperature == 0) out.resize(s.repetition_penalty != 1 ? 1 : 0, Stage{});
  if (s.temperature != 0 || !out.empty())
    out.push_back({"temperature", {{"value", {s.temperature}}}});
  return out;
}

Pick most_likely(std::span<const float> logits) {
  const auto best = index_of_largest(logits);
  const float largest = logits[best];
  return {static_cast<std::int32_t>(best),
          static_cast<double>(largest) - log_sum_exp(logits, largest)};
}

}  // namespace decode

Sampler::Sampler(const Chain& chain, std::uint64_t seed) : generator_(seed) {
  for (const auto& stage : chain) stages_.push_back(registry().make<LogitsStage>(stage));
}

std::int32_t Sampler::sample(std::span<const float> logits, std::span<const std::int32_t> history) {
  const auto greedy = decode::most_likely(logits);
  if (stages_.empty()) {
    last_log_probability_ = greedy.log_probability;
    return greedy.id;
  }
  changed_.assign(logits.begin(), logits.end());
  for (const auto& stage : stages_) stage->apply(changed_, history);
  const float largest = changed_[decode::index_of_largest(changed_)];
  if (!std::isfinite(largest))
    throw Error(Errc::invalid, "the sampler's stages leave no token: their logits are not finite");
  decode::weights(changed_, largest, changed_);
  cumulative_.resize(changed_.size());
  double sum = 0;
  for (std::size_t i = 0; i < changed_.size(); ++i)
    cumulative_[i] = sum += static_cast<double>(changed_[i]);
  // The first token whose sum is above a uniform draw from [0, sum): one of weight 0 never is.
  auto chosen =
      std::upper_bound(cumulative_.begin(), cumulative_.end(), generator_.uniform() * sum);
  if (chosen == cumulative_.end())
    chosen = std::lower_bound(cumulative_.begin(), cumulative_.end(), sum);
  const auto id = static_cast<std::size_t>(chosen - cumulative_.begin());
  const auto first = static_cast<std::size_t>(greedy.id);
  last_log_probability_ = greedy.log_probability +
                          (static_cast<double>(logits[id]) - static_cast<double>(logits[first]));
  return static_cast<std::int32_t>(id);
}

std::int32_t Sampler::sample(const at::Tensor& logits, std::span<const std::int32_t> history) {
  if (!(logits.dim() == 1 || (logits.dim() == 2 && logits.size(0) == 1))) {
    throw Error(Errc::invalid,
                fmt::format("a token is chosen from logits [V] or [1,V], not from {} dimensions",
                            logits.dim()));
  }
  const auto flat = logits.detach().to(at::kCPU, at::kFloat).contiguous();
  return sample(std::span(flat.const_data_ptr<float>(), static_cast<std::size_t>(flat.numel())),
                history);
}

}  // namespace mneme
