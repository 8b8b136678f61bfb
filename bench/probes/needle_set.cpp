#include "bench/probes/needle_set.h"

#include "mneme/core/registry.h"
#include "mneme/tasks/recall.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "bench/kv/recall.h"
#include "bench/kv/texts.h"
#include <algorithm>
#include <array>
#include <chrono>

namespace mneme::bench {
namespace {

constexpr std::array<double, 5> kDepths = {0, 0.25, 0.5, 0.75, 1};
constexpr std::int64_t kFillerTokens = 16384;

}  // namespace

std::vector<std::int32_t> NeedleText::prompt() const {
  auto out = context;
  out.insert(out.end(), question.begin(), question.end());
  return out;
}

std::vector<NeedleText> needle_texts(const LanguageModel& model, const std::filesystem::path& data,
                                     std::string_view task, std::int64_t tokens,
                                     std::int64_t samples, std::uint64_t seed) {
  const auto made = registry().make<RecallTask>(task, data);
  const auto& tokenizer = *model.tokenizer;
  std::vector<NeedleText> out;
  for (std::int64_t i = 0; i < samples; ++i) {
    auto chance = Generator(seed).split(static_cast<std::uint64_t>(i));
    const auto depth = kDepths.at(static_cast<std::size_t>(i) % kDepths.size());
    const auto sample = made->draw({tokens, depth}, tokenizer, chance);
    NeedleText text{tokenizer.encode(sample.context), tokenizer.encode(sample.question), {}};
    for (const auto& candidate : sample.candidates)
      text.candidates.push_back(tokenizer.encode(candidate));
    out.push_back(std::move(text));
  }
  return out;
}

bool ranked_right(const LanguageModel& model, const State& state, const at::Tensor& logits,
                  const NeedleText& text) {
  const auto of = candidate_log_probabilities(model, state, logits, text.candidates);
  return std::all_of(of.begin() + 1, of.end(), [&](double other) { return of[0] > other; });
}

RankedPrompt ranked_behind(const LanguageModel& model, std::span<const std::int32_t> prompt,
                           const NeedleText& text) {
  const c10::InferenceMode inference;
  auto state = model.model->start(1);
  const auto begin = std::chrono::steady_clock::now();
  const auto logits = model.run({prompt.begin(), prompt.end()}, state).logits;
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  return {ranked_right(model, state, logits, text), took.count()};
}

CalibrationText filler_text(const LanguageModel& model, const std::filesystem::path& data,
                            std::uint64_t seed) {
  const auto sample = sample_texts(data, "train", *model.tokenizer, kFillerTokens, 1, seed).front();
  return {sample.source, model.tokenizer->decode(sample.ids)};
}

}  // namespace mneme::bench
