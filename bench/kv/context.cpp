#include "bench/kv/context.h"

#include "mneme/core/error.h"
#include "mneme/models/reconstruct.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace mneme::bench {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Whether a pipeline is shown what attention looks at.
bool is_shown_attention(const Pipeline& pipeline) {
  return pipeline.plan && (pipeline.plan->needs().attention != AttentionLevel::none ||
                           pipeline.plan->needs().query_window > 0);
}

CompressedContext forked(const CompressedContext& context) {
  auto out = CompressedContext{context.state.fork()};
  out.tokens = context.tokens;
  out.seconds = context.seconds;
  out.observe_seconds = context.observe_seconds;
  out.bytes = context.bytes;
  out.most_bytes = context.most_bytes;
  out.kept = context.kept;
  out.shared = true;
  return out;
}

}  // namespace

void take_usage(CompressedContext& context) {
  const auto usage = kv_usage(context.state);
  context.bytes = usage.bytes;
  context.most_bytes = std::max(context.most_bytes, usage.bytes);
  context.kept = usage.kept;
  context.observe_seconds = usage.observe_seconds;
}

bool acts_during_prefill(const KvPlan& plan) {
  const auto& evict = plan.evict();
  // What selects remembers things about pages, which forks share.
  return plan.retrieve() || plan.select() ||
         std::any_of(evict.begin(), evict.end(), [](const KvPlan::Eviction& eviction) {
           return eviction.evict->phase() != KvPhase::prefill_end;
         });
}

bool acts_at_steps(const Pipeline& pipeline) { return pipeline.plan && pipeline.plan->select(); }

ContextOptions behind_context(ContextOptions options, const Pipeline& pipeline) {
  if (acts_at_steps(pipeline)) options.chunk = 1;
  return options;
}

void feed(const LanguageModel& model, State& state, std::span<const std::int32_t> ids, LogitsAt at,
          const ContextOptions& options,
          const std::function<void(const at::Tensor& logits)>& seen) {
  while (!ids.empty()) {
    options.between();
    const auto some = ids.first(std::min(ids.size(), static_cast<std::size_t>(options.chunk)));
    ids = ids.subspan(some.size());
    const auto logits = model.run({some.begin(), some.end()}, state, at).logits;
    if (seen) seen(logits);
  }
}

ContextReader::ContextReader(const LanguageModel& model, const std::vector<Pipeline>& pipelines,
                             std::vector<std::int32_t> ids, ContextOptions options)
    : model_(model), ids_(std::move(ids)), options_(std::move(options)) {
  for (const auto& pipeline : pipelines) {
    if (pipeline.plan && !acts_during_prefill(*pipeline.plan)) forking_.push_back(pipeline.plan);
  }
  if (ids_.empty()) throw Error(Errc::usage, "a context of no tokens: at least one is wanted");
}

CompressedContext ContextReader::run_context(const Pipeline& pipeline,
                                             const CompressedContext* full) const {
  CompressedContext out;
  if (full) {
    out = forked(*full);
    // The reading looked at attention for all; who is shown nothing would have read without.
    if (!is_shown_attention(pipeline)) out.seconds -= full->observe_seconds;
    const auto start = std::chrono::steady_clock::now();
    if (pipeline.plan) {
      use_plan(out.state, pipeline.plan);
      finish_prompt(model_, out.state, ids_, options_.between);
    }
    out.seconds += seconds_since(start);
    take_usage(out);
    if (!is_shown_attention(pipeline)) out.observe_seconds -= full->observe_seconds;
    return out;
  }
  out.state = model_.model->start(1);
  if (pipeline.plan) {
    use_plan(out.state, pipeline.plan);
  } else if (!options_.alone) {
    look_for(out.state, forking_);
  }
  const auto start = std::chrono::steady_clock::now();
  double counting = 0;
  feed(model_, out.state, ids_, LogitsAt::none, options_, [&](const at::Tensor&) {
    const auto before = std::chrono::steady_clock::now();
    take_usage(out);
    counting += seconds_since(before);
  });
  if (pipeline.plan) finish_prompt(model_, out.state, ids_, options_.between);
  out.seconds = seconds_since(start) - counting;
  out.tokens = static_cast<std::int64_t>(ids_.size());
  take_usage(out);
  return out;
}

CompressedContext ContextReader::read(const Pipeline& pipeline) {
  if (options_.alone || (pipeline.plan && acts_during_prefill(*pipeline.plan)))
    return run_context(pipeline, nullptr);
  if (failed_) throw *failed_;
  if (!full_) {
    try {
      full_ = run_context({std::string(kFullCache), nullptr}, nullptr);
    } catch (const Error& error) {
      failed_ = error;
      throw;
    }
  }
  return run_context(pipeline, &*full_);
}

double decode_seconds(const LanguageModel& model, const State& state, std::int32_t first,
                      std::int64_t steps) {
  auto own = state.fork();
  auto next = first;
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t i = 0; i < steps; ++i)
    next = static_cast<std::int32_t>(
        model.run({next}, own, LogitsAt::last).logits.argmax(-1).item<std::int64_t>());
  return seconds_since(start);
}

std::string refusal_of(const Error& error) {
  if (error.code() != Errc::full && error.code() != Errc::unsupported) throw error;
  return error.what();
}

}  // namespace mneme::bench
