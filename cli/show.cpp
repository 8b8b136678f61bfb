// mneme show: what a memory file holds.
#include "mneme/kv/plan.h"
#include "mneme/memory/memory.h"

#include "cli/program/output.h"
#include "cli/program/states.h"
#include "cli/program/verb.h"
#include <algorithm>

namespace mneme::cli {
namespace {

class Show final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::memory_file,
            "show",
            "what a memory file holds: sources, states, budget, sessions",
            {{"FILE", "a memory file"}},
            {"mneme show handbook.mneme"}};
  }

  void declare(Flags& flags) override { flags("--json", json_, "print one JSON object"); }

  void run(const Invocation& call) override {
    MemoryOptions open;
    open.access = MemoryFile::Access::read_only;
    const auto memory =
        Memory::open(call.arguments[0], std::make_shared<MemoryModels>("", ""), open);
    auto& file = memory->file();
    auto documents = file.documents();
    const auto of_sessions =
        std::stable_partition(documents.begin(), documents.end(),
                              [](const DocumentInfo& d) { return d.session.empty(); });
    const auto kept_turns = std::distance(of_sessions, documents.end());
    documents.erase(of_sessions, documents.end());
    const auto usage = file.usage();
    const auto sessions = file.sessions();
    const auto context = file.meta("context").value_or("span"),
               embedder = file.meta("embedder").value_or("");
    if (json_) {
      Json out{{"sources", Json::array()}};
      for (const auto& d : documents) {
        out["sources"].push_back({{"name", d.document.label},
                                  {"bytes", d.bytes},
                                  {"tokens", d.tokens},
                                  {"spans", d.spans},
                                  {"with_states", d.with_states},
                                  {"title", d.document.title},
                                  {"version", d.document.version}});
      }
      out["state_bytes"] = usage.state_bytes;
      out["file_bytes"] = usage.file_bytes + usage.wal_bytes;
      out["budget_bytes"] = usage.budget_bytes;
      out["model"] = memory->model_name();
      out["adapter"] = memory->adapter();
      out["kv"] = memory->kv();
      out["consolidate"] = memory->consolidate();
      out["embedder"] = embedder;
      out["context"] = context;
      out["state_page_bytes"] = usage.state_page_bytes;
      out["free_page_bytes"] = usage.free_page_bytes;
      out["consolidated_spans"] = usage.consolidated_spans;
      out["text_only_spans"] = usage.text_only_spans;
      out["forget_unfinished"] = usage.forget_unfinished;
      out["unembedded_spans"] = usage.unembedded_spans;
      out["questions"] = file.counter("questions");
      out["sessions"] = Json::array();
      for (const auto& session : sessions)
        out["sessions"].push_back({{"name", session.name}, {"turns", session.turns}});
      print_json(out);
      return;
    }
    std::int64_t tokens = 0, spans = 0, with_states = 0, bytes = 0;
    say("{:>12} {:>12} {:>8} {:>11}  {}\n", "bytes", "tokens", "spans", "with states", "source");
    for (const auto& d : documents) {
      say("{:>12} {:>12} {:>8} {:>11}  {}\n", with_separators(d.bytes), with_separators(d.tokens),
          with_separators(d.spans), with_separators(d.with_states), one_line(d.document.label));
      bytes += d.bytes;
      tokens += d.tokens;
      spans += d.spans;
      with_states += d.with_states;
    }
    say("{}\n\n", bold(fmt::format(
                      "{:>12} {:>12} {:>8} {:>11}  {}", with_separators(bytes),
                      with_separators(tokens), with_separators(spans), with_separators(with_states),
                      counted(static_cast<std::int64_t>(documents.size()), "source"))));
    say("file      {}\n", as_size(usage.file_bytes + usage.wal_bytes));
    if (usage.unembedded_spans > 0)
      say("          {} found by their words only: an interrupted `read` goes on when it is run "
          "again\n",
          counted(usage.unembedded_spans, "span is", "spans are"));
    if (usage.forget_unfinished)
      say("          of a forgotten source bytes are left until somebody opens it who may write "
          "it\n");
    say("states    {} of the budget of {}, {} in pages, {} of them free\n",
        as_size(usage.state_bytes), as_size(usage.budget_bytes),
        as_size(usage.state_page_bytes + usage.free_page_bytes), as_size(usage.free_page_bytes));
    if (usage.consolidated_spans > 0) say("          {}\n", describe_states(usage));
    say("kept as   {}, each span read behind {}\n", one_line(spelled_out(memory->kv())),
        context == "stream" ? "all text before it" : "the prompt alone");
    if (memory->consolidate() != spelled_out("quantize(bits=4)"))
      say("          made smaller by {}\n", one_line(memory->consolidate()));
    say("model     {}, adapter {}, embedder {}\n", one_line(memory->model_name()),
        one_line(memory->adapter()), embedder.empty() ? "none yet" : one_line(embedder));
    say("asked     {}\n", counted(file.counter("questions"), "time"));
    for (const auto& session : sessions)
      say("session   {}: {}\n", one_line(session.name), counted(session.turns, "turn"));
    if (kept_turns > 0)
      say("          {} of older turns\n",
          counted(kept_turns, "passage of memory", "passages of memory"));
  }

 private:
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Verb> show_verb() { return std::make_unique<Show>(); }

}  // namespace mneme::cli
