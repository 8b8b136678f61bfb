// mneme import: merges memory files into one.
#include "mneme/core/error.h"
#include "mneme/core/log.h"
#include "mneme/memory/memory_file.h"

#include "cli/program/interrupt.h"
#include "cli/program/new_file.h"
#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <fmt/format.h>

namespace mneme::cli {
namespace {

class Import final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::memory_file,
            "import",
            "merge memory files into one, with their states",
            {{"FILE", "the memory file to import into; made if there is none"},
             {"FROM", "memory files to import", true, true}},
            {"mneme import all.mneme handbook.mneme reports.mneme"}};
  }

  void declare(Flags& flags) override {
    flags("--on-conflict", conflict_, std::vector<std::string>{"replace", "keep", "refuse"},
          "what becomes of a source that both hold with different text");
    flags("--json", json_, "print one JSON object");
  }

  void run(const Invocation& call) override {
    // All are looked at before anything is changed, or made.
    for (std::size_t i = 1; i < call.arguments.size(); ++i)
      MemoryFile::open(call.arguments[i], MemoryFile::Access::read_only);
    const NewFile made(call.arguments[0]);
    const auto file = MemoryFile::open(call.arguments[0], MemoryFile::Access::create);
    file->claim_writer();
    ImportOptions options;
    if (conflict_ == "keep") options.conflict = ImportOptions::Conflict::keep;
    if (conflict_ == "refuse") options.conflict = ImportOptions::Conflict::refuse;
    ImportReport sum;
    for (std::size_t i = 1; i < call.arguments.size(); ++i) {
      stop_if_interrupted();
      add(sum, file->import_from(call.arguments[i], options));
    }
    file->close();
    if (json_) {
      print_json({{"added", sum.added},
                  {"replaced", sum.replaced},
                  {"unchanged", sum.unchanged},
                  {"kept", sum.kept},
                  {"spans", sum.spans},
                  {"reps_stored", sum.states.stored},
                  {"reps_not_stored", sum.states.not_stored},
                  {"reps_left_out", sum.reps_left_out},
                  {"documents_left_out", sum.documents_left_out},
                  {"sessions", sum.sessions},
                  {"sessions_left_out", sum.sessions_left_out},
                  {"turns_left_out", sum.turns_left_out}});
      return;
    }
    say("{}: {} added, {} replaced, {} unchanged; {}, {}\n", call.arguments[0],
        counted(sum.added, "source"), with_separators(sum.replaced), with_separators(sum.unchanged),
        counted(sum.states.stored, "representation"), counted(sum.sessions, "session"));
    for (const auto& label : sum.kept) say("  kept as it was here: {}\n", one_line(label));
    for (const auto& name : sum.sessions_left_out)
      say("  left out, its name is taken here or cannot be one: session {}\n", one_line(name));
    if (sum.documents_left_out > 0)
      say("  {} left out: what they were made from was not imported\n",
          counted(sum.documents_left_out, "document"));
    if (sum.turns_left_out > 0)
      say("  {} left out: damaged, or what they were made from was not imported\n",
          counted(sum.turns_left_out, "turn"));
    if (sum.states.not_stored > 0)
      say("  {} not stored: {}\n",
          counted(sum.states.not_stored, "representation was", "representations were"),
          sum.states.reason);
    if (sum.reps_left_out > 0)
      say("  {} left out: damaged, or their context was not imported\n",
          counted(sum.reps_left_out, "representation"));
  }

 private:
  static void add(ImportReport& sum, const ImportReport& part) {
    sum.added += part.added;
    sum.replaced += part.replaced;
    sum.unchanged += part.unchanged;
    sum.kept.insert(sum.kept.end(), part.kept.begin(), part.kept.end());
    sum.spans += part.spans;
    sum.states.stored += part.states.stored;
    sum.states.not_stored += part.states.not_stored;
    if (sum.states.reason.empty()) sum.states.reason = part.states.reason;
    sum.reps_left_out += part.reps_left_out;
    sum.documents_left_out += part.documents_left_out;
    sum.turns_left_out += part.turns_left_out;
    sum.sessions += part.sessions;
    sum.sessions_left_out.insert(sum.sessions_left_out.end(), part.sessions_left_out.begin(),
                                 part.sessions_left_out.end());
  }

  std::string conflict_ = "replace";
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Verb> import_verb() { return std::make_unique<Import>(); }

}  // namespace mneme::cli
