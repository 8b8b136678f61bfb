// mneme forget: takes a source out of a memory file so that no byte of it is left.
#include "mneme/memory/memory_file.h"

#include "cli/program/forgotten.h"
#include "cli/program/output.h"
#include "cli/program/verb.h"

namespace mneme::cli {
namespace {

class Forget final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {
        Group::memory_file,
        "forget",
        "take a source out of a memory file, with all that was made from it",
        {{"FILE", "a memory file"}, {"SOURCE", "the source's name, as `mneme show` lists it"}},
        {"mneme forget handbook.mneme notes/private.md"},
        "States of other sources that had it in their context, and what chats said from it, go "
        "too; then the file is written anew, so that "
        "no byte of the source is left in it. Exit status 1 if that could not be: the source is "
        "deleted, and the next process that opens the file takes its bytes out."};
  }

  void declare(Flags& flags) override { flags("--json", json_, "print one JSON object"); }

  void run(const Invocation& call) override {
    const auto file = MemoryFile::open(call.arguments[0], MemoryFile::Access::read_write);
    const auto report = file->forget(call.arguments[1]);
    file->close();
    if (json_) {
      print_json({{"forgotten", report.labels},
                  {"spans", report.spans},
                  {"reps", report.reps},
                  {"turns", report.turns},
                  {"cleaned", report.cleaned}});
    } else {
      say("{}: {}; {}, {}, {}\n", report.cleaned ? "forgotten" : "deleted",
          one_line(call.arguments[1]), counted(report.spans, "span"),
          counted(report.reps, "representation"), counted(report.turns, "turn"));
      for (std::size_t i = 1; i < report.labels.size(); ++i)
        say("  and what was made from it: {}\n", one_line(report.labels[i]));
    }
    require_cleaned(report);
  }

 private:
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Verb> forget_verb() { return std::make_unique<Forget>(); }

}  // namespace mneme::cli
