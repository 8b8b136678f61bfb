#include "mneme/decode/sampler.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "mneme/core/error.h"
#include "mneme/core/registry.h"

namespace mneme {
namespace {

[[noreturn]] void refuse_logits() {
  throw Error(Errc::invalid, "the model's logits are not finite: its weights are damaged or a product overflowed");
}

/// ln(sum exp(l)). A term below e^-40 of the largest is passed over: a million of them add 4e-12.
double log_sum_exp(std::span<const float> logits, float largest) {
  double sum = 0;
  for (const auto logit : logits) {
    const float below = logit - largest;
    if (!(below < -40.f)) sum += std::exp(below);  // written so that NaN counts
  }
  const double out = static_cast<double>(largest) + std::log(sum);
  if (!std::isfinite(out)) refuse_logits();
  return out;
}

std::size_t index_of_largest(std::span<const float> logits) {
  if (logits.empty()) throw Error(Errc::invalid, "no logits to choose a token from");
  std::size_t best = 0;
  for (std::size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

}  // namespace

namespace decode {

Chain sampler_chain(const SamplerSettings& s) {
  Chain out;
  if (s.repetition_penalty != 1) {
    out.push_back({"repetition_penalty", {{"penalty", {s.repetition_penalty}}, {"window", {s.repetition_window}}}});
  }
  if (s.top_k != 0) out.push_back({"top_k", {{"k", {s.top_k}}}});
  if (s.top_p != 1) out.push_back({"top_p", {{"p", {s.top_p}}}});
  if (s.min_p != 0) out.push_back({"min_p", {{"p", {s.min_p}}}});
  // The other stages keep the most likely token, so that only a penalty matters to a greedy choice.
  if (s.temperature == 0) out.resize(s.repetition_penalty != 1 ? 1 : 0, Stage{});
  if (s.temperature != 0 || !out.empty()) out.push_back({"temperature", {{"value", {s.temperature}}}});
  return out;
}

Pick most_likely(std::span<const float> logits) {
  const auto best = index_of_largest(logits);
  const float largest = logits[best];
  return {static_cast<std::int32_t>(best), static_cast<double>(largest) - log_sum_exp(logits, largest)};
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
  const double largest = changed_[index_of_largest(changed_)];
  cumulative_.resize(changed_.size());
  double sum = 0;
  for (std::size_t i = 0; i < changed_.size(); ++i) {
    const double below = changed_[i] - largest;
    if (!(below < -700)) sum += std::exp(below);  // e^-700 is nothing, and forbidden tokens cost no exponential
    cumulative_[i] = sum;
  }
  if (!std::isfinite(sum)) refuse_logits();
  // The first token whose sum is above a uniform draw from [0, sum): one of weight 0 never is.
  auto chosen = std::upper_bound(cumulative_.begin(), cumulative_.end(), generator_.uniform() * sum);
  if (chosen == cumulative_.end()) chosen = std::lower_bound(cumulative_.begin(), cumulative_.end(), sum);
  const auto id = static_cast<std::size_t>(chosen - cumulative_.begin());
  const auto first = static_cast<std::size_t>(greedy.id);
  last_log_probability_ = greedy.log_probability + (static_cast<double>(logits[id]) - static_cast<double>(logits[first]));
  return static_cast<std::int32_t>(id);
}

std::int32_t Sampler::sample(const at::Tensor& logits, std::span<const std::int32_t> history) {
  if (!(logits.dim() == 1 || (logits.dim() == 2 && logits.size(0) == 1))) {
    throw Error(Errc::invalid, fmt::format("a token is chosen from logits [V] or [1,V], not from {} dimensions", logits.dim()));
  }
  const auto flat = logits.detach().to(at::kCPU, at::kFloat).contiguous();
  return sample(std::span(flat.const_data_ptr<float>(), static_cast<std::size_t>(flat.numel())), history);
}

}  // namespace mneme
