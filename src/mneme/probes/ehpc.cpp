#include "mneme/probes/ehpc.h"

#include "mneme/core/error.h"
#include "mneme/core/taps.h"
#include "mneme/probes/head_mask.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <fmt/format.h>

namespace mneme {

EvaluatorHeads evaluators(const at::Tensor& scores, std::int64_t count) {
  if (count < 1) throw Error(Errc::invalid, fmt::format("{} heads cannot judge a prompt", count));
  EvaluatorHeads out;
  out.layer = scores.sum(1).argmax().item<std::int64_t>();
  for (const auto& [layer, head] : heads_by_score(scores.narrow(0, out.layer, 1))) {
    if (static_cast<std::int64_t>(out.heads.size()) < count) out.heads.push_back(head);
  }
  std::sort(out.heads.begin(), out.heads.end());
  return out;
}

at::Tensor pooled(const at::Tensor& x, std::int64_t pool) {
  if (pool < 2) return x;
  const auto n = x.size(-1), reach = pool / 2;
  auto window = at::ones({1, 1, 2 * reach + 1}, x.options());
  if (pool % 2 == 0) window[0][0][0] = window[0][0][2 * reach] = 0.5;
  const auto sums = at::conv1d(x.reshape({-1, 1, n}), window, {}, 1, reach);
  const auto counts = at::conv1d(at::ones({1, 1, n}, x.options()), window, {}, 1, reach);
  return (sums / counts).view(x.sizes());
}

std::vector<std::int64_t> kept_places(const at::Tensor& scores, std::int64_t budget,
                                      std::int64_t recent) {
  const auto n = scores.size(0);
  std::vector<std::int64_t> out;
  if (budget >= n) {
    for (std::int64_t i = 0; i < n; ++i) out.push_back(i);
    return out;
  }
  const auto last = std::max<std::int64_t>(n - recent, 1);
  if (budget < 1 + n - last) {
    throw Error(Errc::invalid,
                fmt::format("a prompt cannot be cut to {} tokens: the first and the last {} are "
                            "always kept",
                            budget, recent));
  }
  const auto between = scores.narrow(0, 1, last - 1);
  const auto order = between.argsort(/*stable=*/true, 0, /*descending=*/true).contiguous();
  out.push_back(0);
  for (std::int64_t i = 0; i < budget - 1 - (n - last); ++i)
    out.push_back(1 + order.const_data_ptr<std::int64_t>()[i]);
  for (auto i = last; i < n; ++i) out.push_back(i);
  std::sort(out.begin(), out.end());
  return out;
}

PromptCompressor::PromptCompressor(const LanguageModel& model, EvaluatorHeads evaluators,
                                   EhpcOptions options)
    : model_(model),
      shape_(attention_of(model)),
      evaluators_(std::move(evaluators)),
      options_(options) {
  const auto& heads = evaluators_.heads;
  if (evaluators_.layer < 0 || evaluators_.layer >= shape_.layers || heads.empty() ||
      *std::min_element(heads.begin(), heads.end()) < 0 ||
      *std::max_element(heads.begin(), heads.end()) >= shape_.heads || options.recent < 1) {
    throw Error(Errc::invalid,
                fmt::format("{} has {} layers of {} heads: at least one of them, of layer {}, and "
                            "at least one last token are to judge a prompt",
                            model.name, shape_.layers, shape_.heads, evaluators_.layer));
  }
}

at::Tensor PromptCompressor::scores(std::span<const std::int32_t> ids) const {
  const c10::InferenceMode inference;
  const auto n = static_cast<std::int64_t>(ids.size());
  const auto recent = std::min(options_.recent, n);
  const auto places = at::arange(n, at::kLong), rows = places.narrow(0, n - recent, recent);
  at::Tensor queries, out;
  Taps taps;
  const auto point = [&](const char* name) {
    return fmt::format("layers.{}.attn.{}", evaluators_.layer, name);
  };
  taps.add(point("q"), [&](std::string_view, const at::Tensor& q) {
    queries = turned(shape_, q[0].narrow(1, n - recent, recent), rows);
    return q;
  });
  taps.add(point("k"), [&](std::string_view, const at::Tensor& k) {
    const auto weights = attention_logits(queries, turned(shape_, k[0], places), rows).softmax(-1);
    auto looked = weights.index_select(0, at::tensor(evaluators_.heads, at::kLong))
                      .to(at::kDouble)
                      .mean(1);  // [heads,n]
    looked.select(1, 0).zero_();
    out = pooled(looked, options_.pool).sum(0);
    return k;
  });
  Batch batch;
  batch.ids = at::tensor(at::ArrayRef<std::int32_t>(ids.data(), ids.size()), at::kInt)
                  .to(at::kLong)
                  .unsqueeze(0);
  batch.to_layer = evaluators_.layer + 1;
  batch.logits_at = LogitsAt::none;
  batch.compute = model_.compute;
  batch.taps = &taps;
  auto state = model_.model->start(1);
  static_cast<void>(model_.model->forward(batch, state));
  return out;
}

std::vector<std::int32_t> PromptCompressor::compress(std::span<const std::int32_t> ids,
                                                     std::int64_t budget) const {
  if (budget >= static_cast<std::int64_t>(ids.size())) return {ids.begin(), ids.end()};
  std::vector<std::int32_t> out;
  for (const auto i : kept_places(scores(ids), budget, options_.recent))
    out.push_back(ids[static_cast<std::size_t>(i)]);
  return out;
}

}  // namespace mneme
