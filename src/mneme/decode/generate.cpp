#include "mneme/decode/generate.h"

#include "mneme/core/error.h"
#include "mneme/decode/sampler.h"
#include "mneme/decode/stop.h"
#include "mneme/kv/plan.h"
#include "mneme/models/prepare.h"
#include "mneme/models/reconstruct.h"
#include "mneme/text/streaming_decoder.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <fmt/format.h>

namespace mneme::decode {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

Output feed(const LanguageModel& model, std::span<const std::int32_t> ids, State& state,
            LogitsAt logits_at) {
  Batch batch;
  batch.ids = at::empty({1, static_cast<std::int64_t>(ids.size())}, at::kLong);
  std::copy(ids.begin(), ids.end(), batch.ids.mutable_data_ptr<std::int64_t>());
  batch.logits_at = logits_at;
  batch.compute = model.compute;
  return model.model->forward(batch, state);
}

void check(const LanguageModel& model, const std::vector<std::int32_t>& prompt, const State& state,
           const GenerateOptions& options) {
  if (prompt.empty())
    throw Error(Errc::invalid, "the prompt is empty: at least one token is needed to go on from");
  if (options.max_tokens < 0)
    throw Error(Errc::invalid,
                fmt::format("{} tokens to generate: at least 0 are wanted", options.max_tokens));
  if (options.prefill_chunk < 1)
    throw Error(Errc::invalid, fmt::format("prompt chunks of {} tokens: at least 1 is wanted",
                                           options.prefill_chunk));
  if (state.rows() != 1)
    throw Error(
        Errc::invalid,
        fmt::format("generation goes on from one sequence, the state holds {}", state.rows()));
  const auto held = state.positions.empty() ? 0 : state.positions.front(),
             context = model.model->shape().context;
  const auto size = static_cast<std::int64_t>(prompt.size());
  if (context > 0 && held + size > context && !any_length(state, context)) {
    throw Error(
        Errc::full,
        fmt::format(
            "the prompt has {} tokens{}, the model's context takes {}: shorten it by {} tokens",
            size, held > 0 ? fmt::format(" behind {} already held", held) : "", context,
            held + size - context));
  }
}

}  // namespace

Generation generate(const LanguageModel& model, const std::vector<std::int32_t>& prompt,
                    State& state, const GenerateOptions& options) {
  const auto begin = Clock::now();
  const c10::NoGradGuard no_grad;
  Sampler sampler(options.sampler, options.seed);
  StopStrings stops(options.stop);
  StreamingDecoder decoder(*model.tokenizer, true);
  if (state.empty() && state.positions.empty()) state = model.model->start(1);
  check(model, prompt, state, options);
  const auto& stop_ids =
      options.stop_ids ? *options.stop_ids : model.tokenizer->end_of_generation();
  const auto context = model.model->shape().context;

  Generation out;
  const auto show = [&](std::string_view text) {
    out.text += text;
    return text.empty() || !options.on_text || options.on_text(text);
  };

  at::Tensor logits;
  for (std::size_t at = 0; at < prompt.size();) {
    const auto chunk =
        std::min(prompt.size() - at, static_cast<std::size_t>(options.prefill_chunk));
    const bool last = at + chunk == prompt.size();
    logits = feed(model, std::span(prompt).subspan(at, chunk), state,
                  last && options.max_tokens > 0 ? LogitsAt::last : LogitsAt::none)
                 .logits;
    at += chunk;
    out.prompt_tokens = static_cast<std::int64_t>(at);
    if (!last && options.on_text && !options.on_text({})) {
      out.pending.assign(prompt.begin() + static_cast<std::ptrdiff_t>(at), prompt.end());
      out.stop_reason = "interrupted";
      break;
    }
  }
  if (out.stop_reason.empty()) {
    struct Stopped {};
    try {
      finish_prompt(model, state, prompt, [&] {
        if (options.on_text && !options.on_text({})) throw Stopped();
      });
    } catch (const Stopped&) {
      out.stop_reason = "interrupted";
    }
  }
  out.prefill_seconds = seconds_since(begin);

  auto first_token = Clock::now();
  auto history = prompt;
  history.reserve(prompt.size() +
                  static_cast<std::size_t>(std::min<std::int64_t>(options.max_tokens, 4096)));
  if (out.stop_reason.empty() && options.max_tokens == 0) out.stop_reason = "length";
  while (out.stop_reason.empty()) {
    const auto id = sampler.sample(logits, history);
    if (out.log_probabilities.empty()) {
      first_token = Clock::now();
      out.first_token_seconds = seconds_since(begin);
    }
    out.log_probabilities.push_back(sampler.last_log_probability());
    out.pending.assign(1, id);
    if (std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end()) {
      out.stop_reason = "eos";
      break;
    }
    out.ids.push_back(id);
    history.push_back(id);
    const bool go_on = show(stops.push(decoder.push(id)));
    if (stops.stopped()) {
      out.stop_reason = "stop";
    } else if (!go_on) {
      out.stop_reason = "interrupted";
    } else if (static_cast<std::int64_t>(out.ids.size()) == options.max_tokens) {
      out.stop_reason = "length";
    } else if (context > 0 && state.positions.front() >= context && !any_length(state, context)) {
      out.stop_reason = "context";
    } else {
      logits = feed(model, out.pending, state, LogitsAt::last).logits;
      out.pending.clear();
    }
  }
  if (!stops.stopped()) {
    show(stops.push(decoder.finish()));
    show(stops.finish());
    if (stops.stopped()) out.stop_reason = "stop";  // one that holds U+FFFD
  }
  if (!out.log_probabilities.empty()) out.decode_seconds = seconds_since(first_token);
  return out;
}

}  // namespace mneme::decode
