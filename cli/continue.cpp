// mneme continue: a model writes on from the end of what a memory has read.
#include "mneme/core/log.h"
#include "mneme/kv/plan.h"
#include "mneme/memory/memory.h"

#include "cli/program/citations.h"
#include "cli/program/interrupt.h"
#include "cli/program/output.h"
#include "cli/program/sampling.h"
#include "cli/program/verb.h"
#include <memory>

namespace mneme::cli {
namespace {

class Continue final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::main_job,
            "continue",
            "write on from the end of a source, from memory",
            {{"FILE", "a memory file"}},
            {"mneme continue story.mneme --max-tokens 200 --temp 0.8 --seed 3",
             "mneme continue novel.mneme --kv 'window(sinks=4, size=2048) | renumber' "
             "--max-tokens 20000"}};
  }

  void declare(Flags& flags) override {
    flags("--max-tokens", max_tokens_, "N", at_least(1), "tokens to write at most");
    flags("--source", source_, "LABEL", "the source to continue; unset: the last that was read");
    flags("--memory,--kv", kv_, "SPEC",
          "read the source again, as much of its end as the model's context takes, or all of it if "
          "this keeps entries near, as \"infllm(disk=true)\"; unset: its last passages, from their "
          "states");
    flags("--model", model_, "NAME", "language model; unset: the memory's");
    sampling_.declare(flags);
    flags("--json", json_, "print one JSON object");
  }

  void run(const Invocation& call) override {
    const auto chain = sampling_.chain(call.origins);
    if (!kv_.empty()) KvPlan(parse_chain(kv_));  // before a model is loaded in vain
    const auto memory =
        Memory::open(call.arguments[0], std::make_shared<MemoryModels>(model_, ""), {});
    const auto on_text =
        json_
            ? std::function<bool(std::string_view)>([](std::string_view) { return !interrupted(); })
            : stream_to_output();
    const auto written =
        memory->continue_text(max_tokens_, chain, call.everywhere.seed, source_, on_text, kv_);
    if (json_) {
      print_json({{"text", written.text},
                  {"stop_reason", written.stop_reason},
                  {"tokens_placed", written.tokens_placed},
                  {"document_tokens_evaluated", written.document_tokens_evaluated},
                  {"generated_tokens", written.generated_tokens},
                  {"tokens_left_out", written.tokens_left_out},
                  {"seconds", written.seconds}});
    } else {
      say("\n");
      flush();
      log::info("{} placed from states, {} of the source read now, {} written in {}",
                counted(written.tokens_placed, "token"),
                counted(written.document_tokens_evaluated, "token"),
                counted(written.generated_tokens, "token"), as_duration(written.seconds));
      if (!kv_.empty() && written.tokens_left_out > 0)
        log::warn(
            "the first {} of the source do not fit the model's context beside what is to be "
            "written: they were not read",
            counted(written.tokens_left_out, "token"));
      if (written.stop_reason == "context") log::warn("it ends early: the model's context is full");
    }
    if (written.stop_reason == "interrupted") throw Interrupted();
  }

 private:
  std::int64_t max_tokens_ = 128;
  std::string source_, model_, kv_;
  Sampling sampling_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Verb> continue_verb() { return std::make_unique<Continue>(); }

}  // namespace mneme::cli
