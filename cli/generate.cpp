// mneme generate: a model writes on from a prompt.
#include "mneme/decode/generate.h"

#include "mneme/core/error.h"
#include "mneme/core/log.h"
#include "mneme/models/kv_plan.h"
#include "mneme/models/language_model.h"

#include "cli/program/citations.h"
#include "cli/program/input.h"
#include "cli/program/interrupt.h"
#include "cli/program/output.h"
#include "cli/program/sampling.h"
#include "cli/program/verb.h"
#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <memory>

namespace mneme::cli {
namespace {

double rate(std::int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

class Generate final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::model,
            "generate",
            "let a language model write on from a text",
            {{"PROMPT", "the text; `-` takes it from standard input"}},
            {"mneme generate \"The capital of France is\" --max-tokens 8",
             "mneme generate --chat \"Name three rivers.\" --temp 0.7 --top-p 0.9 --seed 1"}};
  }

  void declare(Flags& flags) override {
    flags("--model", model_, "NAME", "a known name, a GGUF file or a model folder");
    flags("--memory,--kv", kv_, "SPEC",
          "what attention keeps, as \"window(sinks=4, size=1024) | quantize(bits=8)\"; unset: "
          "everything");
    flags("--chat", chat_, "ask it as a message, in the model's chat template");
    flags("--max-tokens", max_tokens_, "N", at_least(1), "tokens to generate at most");
    flags("--stop", stop_, "TEXT", "end before this text; may be repeated");
    sampling_.declare(flags);
    flags("--json", json_, "print one JSON object");
  }

  void run(const Invocation& call) override {
    GenerateOptions options;
    options.max_tokens = max_tokens_;
    options.sampler = sampling_.chain(call.origins);
    options.seed = call.everywhere.seed;
    options.stop = stop_;
    if (!kv_.empty()) KvPlan(parse_chain(kv_));  // before a model is loaded in vain
    const auto text = call.arguments[0] == "-" ? read_input() : call.arguments[0];
    const auto model = load_language_model(model_);
    std::vector<std::int32_t> prompt;
    if (chat_) {
      if (!model->chat)
        throw Error(
            Errc::unsupported,
            fmt::format("{} has no chat template that mneme knows: leave out --chat", model->name));
      const ChatMessage message{"user", text};
      prompt = model->chat->encode_chat(*model->tokenizer, {&message, 1}, true);
    } else {
      prompt = model->tokenizer->encode(text, {true, false});
    }
    if (prompt.empty()) throw Error(Errc::usage, "the prompt is empty");
    warn_of_lost_bytes(model->tokenizer->lost_bytes(text), "prompt");
    std::shared_ptr<const KvPlan> plan;
    if (!kv_.empty()) plan = kv_plan(kv_, *model);
    auto state = model->model->start(1);
    if (plan) use_plan(state, plan);
    if (json_) {
      options.on_text = [](std::string_view) { return !interrupted(); };
    } else {
      options.on_text = stream_to_output();
    }
    const auto said = decode::generate(*model, prompt, state, options);
    const auto kept = kv_usage(state);
    const auto generated = static_cast<std::int64_t>(said.ids.size());
    const auto prefill_rate = rate(said.prompt_tokens, said.prefill_seconds),
               decode_rate = rate(std::max<std::int64_t>(0, generated - 1), said.decode_seconds);
    if (json_) {
      Json out{{"text", said.text},
               {"ids", said.ids},
               {"prompt_tokens", said.prompt_tokens},
               {"generated_tokens", generated}};
      out["timing"] = {{"prefill_tokens_per_s", prefill_rate},
                       {"decode_tokens_per_s", decode_rate},
                       {"first_token_s", said.first_token_seconds}};
      out["kv"] = {{"spec", plan ? print_chain(*plan) : ""},
                   {"bytes", kept.bytes},
                   {"seen", kept.seen},
                   {"kept", whole_or_not(kept.kept)}};
      out["stop_reason"] = said.stop_reason;
      out["log_probabilities"] = said.log_probabilities;
      out["model"] = model->name;
      print_json(out);
    } else {
      say("\n");
      flush();
      log::info(
          "{} read at {:.0f} tokens/s, {} generated at {:.1f} tokens/s; kept {:.0f} of {} tokens "
          "in {}",
          counted(said.prompt_tokens, "token"), prefill_rate, counted(generated, "token"),
          decode_rate, kept.kept, kept.seen, as_size(kept.bytes));
      if (said.stop_reason == "context") log::warn("it ends early: the model's context is full");
    }
    if (said.stop_reason == "interrupted") throw Interrupted();
  }

 private:
  static std::string print_chain(const KvPlan& plan) { return mneme::print(plan.chain()); }
  /// A mean over layers and heads, which is whole wherever all keep the same.
  static Json whole_or_not(double value) {
    const auto whole = std::round(value);
    return std::abs(value - whole) < 1e-6 ? Json(static_cast<std::int64_t>(whole)) : Json(value);
  }

  std::string model_ = "smollm2", kv_;
  std::int64_t max_tokens_ = 128;
  std::vector<std::string> stop_;
  Sampling sampling_;
  bool chat_ = false, json_ = false;
};

}  // namespace

std::unique_ptr<Verb> generate_verb() { return std::make_unique<Generate>(); }

}  // namespace mneme::cli
