// mneme verify: is a memory file what it should be?
#include "mneme/core/error.h"
#include "mneme/memory/memory.h"

#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <fmt/format.h>

namespace mneme::cli {
namespace {

class Verify final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::memory_file,
            "verify",
            "check a memory file: structure, ranges, checksums",
            {{"FILE", "a memory file"}},
            {"mneme verify handbook.mneme --deep 5"},
            "One line a problem; exit status 1 if there is one."};
  }

  void declare(Flags& flags) override {
    flags("--deep", deep_, "N", within(0, 1e9),
          "also compute N spans' states again from their text and compare; --seed picks which");
    flags("--model", model_, "NAME", "language model for --deep; unset: the memory's");
    flags("--adapter", adapter_, "NAME", "its adapter; unset: the memory's");
    flags("--json", json_, "print one JSON object");
  }

  void run(const Invocation& call) override {
    MemoryOptions open;
    open.access = MemoryFile::Access::read_only;
    const auto memory =
        Memory::open(call.arguments[0], std::make_shared<MemoryModels>(model_, "", adapter_), open);
    const auto report = memory->verify(deep_, call.everywhere.seed);
    const auto problems = counted(static_cast<std::int64_t>(report.problems.size()), "problem");
    if (json_) {
      print_json({{"ok", report.ok()},
                  {"problems", report.problems},
                  {"documents", report.documents},
                  {"spans", report.passages},
                  {"reps", report.reps},
                  {"turns", report.turns},
                  {"compared", report.compared}});
    } else {
      for (const auto& problem : report.problems) say("{}\n", one_line(problem));
      if (report.ok()) {
        say("{}: sound ({}, {}, {}, {})\n", call.arguments[0],
            counted(report.documents, "document"), counted(report.passages, "span"),
            counted(report.reps, "representation"), counted(report.turns, "turn"));
        if (deep_ > 0)
          say("  the states of {} were computed again and are as stored{}\n",
              counted(report.compared, "span"),
              report.compared < deep_ ? ": no other has states" : "");
      }
    }
    if (report.ok()) return;
    const bool mends = report.remade == static_cast<std::int64_t>(report.problems.size());
    throw Error(Errc::corrupt,
                fmt::format("{}: {} found; {}", call.arguments[0], problems,
                            mends ? "what is damaged was computed from the text, which is sound, "
                                    "and is made again when it is needed"
                                  : "what is damaged comes back only from a backup, or by reading "
                                    "its sources into a new memory"));
  }

 private:
  std::int64_t deep_ = 0;
  std::string model_, adapter_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Verb> verify_verb() { return std::make_unique<Verify>(); }

}  // namespace mneme::cli
