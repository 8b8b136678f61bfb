#include "bench/kv/forced.h"

#include "mneme/core/error.h"
#include "mneme/core/progress.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "bench/kv/divergence.h"
#include <algorithm>
#include <chrono>
#include <fmt/format.h>
#include <limits>
#include <numeric>

namespace mneme::bench {
namespace {

double average(std::span<const double> x) {
  return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

/// Logits [T,V] of all tokens.
at::Tensor logits_of(const LanguageModel& model, State& state, std::span<const std::int32_t> ids,
                     const ContextOptions& options) {
  std::vector<at::Tensor> parts;
  feed(model, state, ids, LogitsAt::all, options,
       [&](const at::Tensor& logits) { parts.push_back(logits[0]); });
  return at::cat(parts);
}

/// Whether stages of a plan wait for the end of a prompt.
bool waits_for_prompt_end(const KvPlan& plan) {
  const auto& evict = plan.evict();
  return plan.narrow() || std::any_of(evict.begin(), evict.end(), [](const auto& eviction) {
           return eviction.evict->phase() == KvPhase::prefill_end;
         });
}

}  // namespace

ContinuationFindings measure_continuations(const LanguageModel& model,
                                           const std::vector<Pipeline>& pipelines,
                                           std::span<const std::vector<std::int32_t>> texts,
                                           std::int64_t context, std::int64_t steps,
                                           const ContextOptions& options) {
  const c10::InferenceMode inference;
  ContinuationFindings out;
  out.outcomes.assign(pipelines.size(), std::vector<ContinuationOutcome>(texts.size()));
  out.footprints.resize(pipelines.size());
  out.refusals.resize(pipelines.size());
  Progress progress(fmt::format("going on behind {} tokens", context),
                    static_cast<std::int64_t>(texts.size() * pipelines.size()), "contexts");
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::span<const std::int32_t> text = texts[i];
    const auto cut = static_cast<std::size_t>(context);
    if (text.size() < cut + 2) {
      throw Error(Errc::usage, fmt::format("a text of {} tokens where {} of context and at least 2 "
                                           "of continuation are wanted",
                                           text.size(), context));
    }
    ContextReader reader(model, pipelines, {text.begin(), text.begin() + context}, options);
    const auto shown = text.subspan(cut, text.size() - cut - 1), came = text.subspan(cut + 1);
    at::Tensor full;
    for (std::size_t p = 0; p < pipelines.size(); ++p) {
      auto& outcome = out.outcomes[p][i];
      try {
        auto held = reader.read(pipelines[p]);
        if (steps > 0)
          out.footprints[p].add_decoding(steps,
                                         decode_seconds(model, held.state, shown.front(), steps));
        const auto logits =
            logits_of(model, held.state, shown, behind_context(options, pipelines[p]));
        if (p == 0) full = logits;
        out.footprints[p].add(held);
        if (full.defined()) {
          const auto found = divergence(full, logits, came);
          outcome.token_kl = found.kl;
          outcome.kl = average(found.kl);
          outcome.agreement = average(found.agreement);
          outcome.nll = average(found.nll);
          outcome.full_nll = p == 0 ? outcome.nll : out.outcomes[0][i].nll;
          outcome.measured = true;
        }
      } catch (const Error& error) {
        auto reason = refusal_of(error);
        if (out.refusals[p].empty()) out.refusals[p] = std::move(reason);
      }
      progress.advance(1);
    }
  }
  return out;
}

std::vector<KvRow> continuation_rows(const std::vector<Pipeline>& pipelines,
                                     const ContinuationFindings& findings,
                                     const std::string& part) {
  std::vector<KvRow> out;
  for (std::size_t p = 0; p < pipelines.size(); ++p) {
    KvRow row;
    row.pipeline = pipelines[p].name;
    row.part = part;
    row.refusal = findings.refusals[p];
    row.footprint = findings.footprints[p];
    std::vector<double> kl, agreement, nll, full_nll, token_kl;
    for (const auto& outcome : findings.outcomes[p]) {
      if (!outcome.measured) continue;
      kl.push_back(outcome.kl);
      agreement.push_back(outcome.agreement);
      nll.push_back(outcome.nll);
      full_nll.push_back(outcome.full_nll);
      token_kl.insert(token_kl.end(), outcome.token_kl.begin(), outcome.token_kl.end());
    }
    if (!kl.empty()) {
      row.scores = {{"KL, nats", estimated_mean(kl), 4},
                    {"same first token", estimated_mean(agreement), 3},
                    {"NLL - full", estimated_difference(nll, full_nll), 4},
                    {"NLL", estimated_mean(nll), 3}};
      // A mean hides single tokens that go badly wrong.
      std::sort(token_kl.begin(), token_kl.end());
      row.more["kl_99th_percentile"] = token_kl[(token_kl.size() - 1) * 99 / 100];
      row.more["kl_of_texts"] = kl;
    }
    out.push_back(std::move(row));
  }
  return out;
}

StreamOutcome measure_stream(const LanguageModel& model, const Pipeline& pipeline,
                             std::span<const std::int32_t> text, const ContextOptions& options) {
  const c10::InferenceMode inference;
  MNEME_ASSERT(text.size() > 1);
  StreamOutcome out;
  auto& context = out.context;
  if (pipeline.plan && waits_for_prompt_end(*pipeline.plan)) {
    out.refusal = "it waits for the end of a prompt, which a stream never comes to";
    return out;
  }
  context.state = model.model->start(1);
  if (pipeline.plan) use_plan(context.state, pipeline.plan);
  Progress progress("streaming, " + pipeline.name, static_cast<std::int64_t>(text.size()),
                    "tokens");
  auto came = text.subspan(1);
  auto started = std::chrono::steady_clock::now();
  try {
    feed(model, context.state, text.first(text.size() - 1), LogitsAt::all, options,
         [&](const at::Tensor& logits) {
           context.seconds +=
               std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
           const auto n = static_cast<std::size_t>(logits.size(1));
           const auto nll = nll_of(logits[0], came.first(n));
           out.nll.insert(out.nll.end(), nll.begin(), nll.end());
           came = came.subspan(n);
           context.tokens += static_cast<std::int64_t>(n);
           take_usage(context);
           progress.advance(static_cast<std::int64_t>(n));
           started = std::chrono::steady_clock::now();
         });
  } catch (const Error& error) {
    out.refusal = refusal_of(error);
  }
  return out;
}

std::vector<double> window_means(std::span<const double> x, std::int64_t window) {
  std::vector<double> out;
  while (!x.empty()) {
    const auto some = x.first(std::min(x.size(), static_cast<std::size_t>(window)));
    out.push_back(average(some));
    x = x.subspan(some.size());
  }
  return out;
}

}  // namespace mneme::bench
