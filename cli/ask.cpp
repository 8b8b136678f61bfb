// mneme ask: one question, answered from memory files, with citations.
#include "mneme/core/error.h"
#include "mneme/core/log.h"
#include "mneme/core/registry.h"
#include "mneme/kv/plan.h"
#include "mneme/memory/cached_answers.h"
#include "mneme/memory/memory.h"

#include "cli/program/citations.h"
#include "cli/program/input.h"
#include "cli/program/interrupt.h"
#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <algorithm>
#include <filesystem>
#include <fmt/format.h>
#include <memory>
#include <optional>

namespace mneme::cli {
namespace {

class Ask final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::main_job,
            "ask",
            "answer a question from memory files, with citations",
            {{"FILE", "a memory file, as `mneme read` makes it", true, true},
             {"QUESTION", "the question; `-` takes it from standard input"}},
            {"mneme ask handbook.mneme \"Who approves travel?\"",
             "mneme ask handbook.mneme reports.mneme \"When did sales fall?\" --explain",
             "mneme ask handbook.mneme \"Who signs for travel?\" --response-cache vectorq"},
            "Only the question is run where the spans found have states; others are read now, and "
            "their states kept. An answer whose words "
            "stand in no cited span is marked as not a quotation; nothing relevant gives \"not "
            "found in memory\", with exit status 0. With --response-cache answers are kept in the "
            "memory file and given again to questions that ask the same, until a source changes."};
  }

  void declare(Flags& flags) override {
    flags("--json", json_, "print one JSON object");
    flags("--explain", explain_, "also show which spans were found and what each gave");
    flags("--place", place_, std::vector<std::string>{"each", "together"},
          "read every span alone and take the best answer, or all in one context");
    flags("--top", top_, "K", at_least(0),
          "spans to read; 0: what the memory's prompt says for each, 2 for together");
    flags("--max-tokens", max_tokens_, "N", at_least(0),
          "tokens of an answer at most; 0: what the memory's prompt says");
    flags("--source", sources_, "LABEL", "only search this source; may be repeated");
    flags("--always", always_, "answer also when nothing relevant was found");
    flags("--model", model_, "NAME", "language model; unset: the memory's");
    flags("--adapter", adapter_, "NAME",
          "adapter of the model: a known name, a file of `mneme train`, none; unset: the memory's");
    flags("--embedder", embedder_, "NAME", "embedder; unset: the memory's");
    flags("--strict", strict_,
          "refuse another model than the memory was read with, in place of reading spans again");
    flags("--response-cache", response_cache_, "SPEC",
          "give answers again to like questions, as 'vectorq(delta=0.02)' says; unset: never");
  }

  void run(const Invocation& call) override {
    std::shared_ptr<const ReusePolicy> policy;
    if (!response_cache_.empty()) policy = registry().make<ReusePolicy>(response_cache_);
    std::vector<std::string> files;
    for (auto file = call.arguments.begin(); file + 1 != call.arguments.end(); ++file) {
      // One memory given twice would cite everything twice.
      std::error_code not_there;
      if (std::none_of(files.begin(), files.end(), [&](const std::string& other) {
            return std::filesystem::equivalent(*file, other, not_there);
          }))
        files.push_back(*file);
    }
    if (policy && files.size() > 1) {
      throw Error(Errc::usage,
                  "--response-cache: answers are kept in one memory file, and can be forgotten "
                  "only with its sources: ask one file, or leave it out");
    }
    const auto question = text_or_input(call.arguments.back(), "question");
    auto models = std::make_shared<MemoryModels>(model_, embedder_, adapter_);
    MemoryOptions open;
    open.strict = strict_;
    std::vector<std::unique_ptr<Memory>> memories;
    std::vector<Memory*> all;
    for (const auto& file : files) {
      memories.push_back(Memory::open(file, models, open));
      all.push_back(memories.back().get());
    }
    AskOptions options;
    options.placement = place_ == "each" ? Placement::each : Placement::together;
    options.top = top_;
    options.max_tokens = max_tokens_;
    options.sources = sources_;
    options.always = always_;
    // Loaded before the question is timed: what it takes is of this process, not of the question.
    const auto embedder = models->embedder(all.front()->file().meta("embedder").value_or(""));
    stop_if_interrupted();
    std::optional<CachedAnswers> cached;
    std::optional<Answer> found;
    if (policy) {
      cached.emplace(*all.front(), embedder, options, policy, call.everywhere.seed);
      found = cached->find(question);
    }
    if (!found) {
      all.front()->reader();
      stop_if_interrupted();
      found = mneme::ask(all, question, options);
      if (cached) cached->learn(*found);
    }
    const auto& answer = *found;
    if (cached) cache_ = cached->report();
    if (json_) {
      print_answer(answer);
    } else {
      describe(answer, files.size() > 1, all.front()->prompt().max_tokens);
    }
  }

 private:
  void print_answer(const Answer& answer) const {
    Json out{{"answer", answer.answer},
             {"found", answer.found},
             {"citations", citations_json(answer.citations)}};
    out["usage"] = {{"document_tokens_evaluated", answer.document_tokens_evaluated},
                    {"question_tokens", answer.question_tokens},
                    {"generated_tokens", answer.generated_tokens},
                    {"tokens_in_memory", answer.tokens_in_memory},
                    {"tokens_placed", answer.tokens_placed},
                    {"tokens_dropped", answer.tokens_dropped},
                    {"state_bytes", answer.state_bytes},
                    {"states_stored", answer.states_stored}};
    out["timing"] = {{"retrieve_s", answer.retrieve_s},
                     {"first_token_s", answer.first_token_s},
                     {"total_s", answer.total_s},
                     {"decode_tokens_per_s", answer.decode_tokens_per_s}};
    out["model"] = answer.model;
    out["adapter"] = answer.adapter;
    out["kv"] = answer.kv;
    out["quotation"] = answer.quotation;
    out["cut"] = answer.cut;
    out["relevance"] = answer.relevance;
    out["threshold"] = answer.threshold;
    out["confidence"] = answer.confidence;
    if (answer.confidence_wanted) out["confidence_wanted"] = *answer.confidence_wanted;
    out["states_obstacle"] = answer.states_obstacle;
    if (cache_) {
      auto& cache = out["response_cache"];
      cache = {{"hit", cache_->hit},
               {"explored", cache_->explored},
               {"entry", cache_->entry ? Json(*cache_->entry) : Json()},
               {"similarity", cache_->entry ? Json(cache_->similarity) : Json()},
               {"explore_probability", cache_->explore_probability},
               {"right", cache_->right ? Json(*cache_->right) : Json()},
               {"entries", cache_->entries},
               {"stored", cache_->stored},
               {"obstacle", cache_->obstacle}};
    }
    if (explain_) {
      out["candidates"] = Json::array();
      for (const auto& c : answer.candidates) {
        out["candidates"].push_back({{"source", c.source},
                                     {"start", c.begin},
                                     {"end", c.end},
                                     {"excerpt", c.excerpt},
                                     {"score", c.candidate.score},
                                     {"cosine", c.candidate.cosine},
                                     {"cover", c.candidate.cover},
                                     {"rrf", c.candidate.rrf},
                                     {"placed", c.placed},
                                     {"had_state", c.had_state},
                                     {"answer", c.answer},
                                     {"answer_log_probability", c.answer_log_probability},
                                     {"refused", c.refused},
                                     {"file", c.file}});
      }
    }
    print_json(out);
  }

  void describe(const Answer& answer, bool name_files, std::int64_t prompt_tokens) const {
    say("{}\n", bold(one_line(answer.answer)));
    if (answer.found && !answer.quotation) say("{}\n", not_a_quotation());
    if (answer.cut) say("{}\n", faint(cut_at(max_tokens_ > 0 ? max_tokens_ : prompt_tokens)));
    if (!answer.citations.empty()) say("\n{}", describe_citations(answer.citations, name_files));
    if (answer.tokens_dropped > 0)
      log::warn("spans of {} tokens did not fit the model's context and were not read",
                with_separators(answer.tokens_dropped));
    if (!answer.states_obstacle.empty())
      log::info("states were not stored: {}", answer.states_obstacle);
    if (cache_ && !cache_->obstacle.empty())
      log::info("the response cache was not stored: {}", cache_->obstacle);
    if (explain_) explain(answer, name_files);
  }

  void explain(const Answer& answer, bool name_files) const {
    if (cache_) explain_cache();
    say("\n{}\n", bold("Found"));
    const auto side = [](double value, double least) { return value < least ? "below" : "above"; };
    say("  relevance {:.3f}, {} the threshold of {:.3f}\n", answer.relevance,
        side(answer.relevance, answer.threshold), answer.threshold);
    const bool read = std::any_of(answer.candidates.begin(), answer.candidates.end(),
                                  [](const auto& c) { return !c.answer.empty(); });
    if (read && answer.confidence_wanted)
      say("  confidence in the answer {:.3f}, {} the threshold of {:.3f}\n", answer.confidence,
          side(answer.confidence, *answer.confidence_wanted), *answer.confidence_wanted);
    say("\n  {:>4} {:>6} {:>6} {:>6} {:>6}  {:<9} {:>7} {:>7}  source and text\n", "rank", "score",
        "cosine", "cover", "rrf", "placed", "log p", "refused");
    for (std::size_t i = 0; i < answer.candidates.size(); ++i) {
      const auto& c = answer.candidates[i];
      const auto* placed = !c.placed ? "" : c.had_state ? "state" : "read now";
      say("  {:>4} {:>6.3f} {:>6.3f} {:>6.3f} {:>6.3f}  {:<9} {:>7} {:>7}  {}{}, bytes {}-{}: {}\n",
          i + 1, c.candidate.score, c.candidate.cosine, c.candidate.cover, c.candidate.rrf, placed,
          c.answer.empty() ? "" : fmt::format("{:.3f}", c.answer_log_probability),
          c.placed && answer.confidence_wanted ? fmt::format("{:.2f}", c.refused) : "",
          name_files ? one_line(c.file) + " " : "", one_line(c.source), c.begin, c.end,
          faint(shortened(one_line(c.excerpt))));
      if (c.placed && !c.answer.empty()) say("  {:>61}{}\n", "answer: ", one_line(c.answer));
    }
    say("\n{}\n", bold("Cost"));
    say("  tokens: {} of the documents read now, {} placed, {} left out, {} of the question, {} "
        "generated; {} in memory\n",
        with_separators(answer.document_tokens_evaluated), with_separators(answer.tokens_placed),
        with_separators(answer.tokens_dropped), answer.question_tokens, answer.generated_tokens,
        with_separators(answer.tokens_in_memory));
    say("  states: {} placed, {} stored{}\n", as_size(answer.state_bytes), answer.states_stored,
        answer.states_obstacle.empty() ? "" : " (" + answer.states_obstacle + ")");
    say("  time: {} to find, {} to the first token, {} in all, {:.1f} tokens/s\n",
        as_duration(answer.retrieve_s), as_duration(answer.first_token_s),
        as_duration(answer.total_s), answer.decode_tokens_per_s);
    say("  model {}, adapter {}, states kept as {}\n", one_line(answer.model),
        one_line(answer.adapter), one_line(spelled_out(answer.kv)));
  }

  void explain_cache() const {
    say("\n{}\n", bold("Response cache"));
    std::string what = "no answer is cached";
    if (cache_->entry) {
      what = fmt::format("the nearest is answer {}, similarity {:.3f}", *cache_->entry,
                         cache_->similarity);
      if (cache_->hit) {
        what += ": given again";
      } else {
        what += fmt::format(": asked anew, with probability {:.3f}", cache_->explore_probability);
        if (cache_->right) what += *cache_->right ? "; it was right" : "; it was not the answer";
      }
    }
    say("  {}; {} kept{}\n", what, counted(cache_->entries, "answer"),
        cache_->obstacle.empty() ? "" : " (not stored: " + cache_->obstacle + ")");
  }

  static std::string shortened(const std::string& text) {
    return excerpt(text, 0, static_cast<std::int64_t>(text.size()), 60);
  }

  std::string place_ = "each", model_, embedder_, adapter_, response_cache_;
  std::int64_t top_ = 0, max_tokens_ = 0;
  std::vector<std::string> sources_;
  bool json_ = false, explain_ = false, always_ = false, strict_ = false;
  std::optional<CacheReport> cache_;  ///< where there is a cache
};

}  // namespace

std::unique_ptr<Verb> ask_verb() { return std::make_unique<Ask>(); }

}  // namespace mneme::cli
