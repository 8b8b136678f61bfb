// mneme upgrade: brings a memory file of an older format to the one that this program writes.
#include "mneme/memory/memory_file.h"

#include "cli/program/output.h"
#include "cli/program/verb.h"

namespace mneme::cli {
namespace {

class Upgrade final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::memory_file,
            "upgrade",
            "bring a memory file of an older format up to date",
            {{"FILE", "a memory file"}},
            {"mneme upgrade handbook.mneme"}};
  }

  void declare(Flags& flags) override { flags("--json", json_, "print one JSON object"); }

  void run(const Invocation& call) override {
    const auto before = MemoryFile::upgrade(call.arguments[0]);
    const auto after = MemoryFile::upgrade(call.arguments[0]);  // the format that it has now
    if (json_) {
      print_json({{"format_before", before}, {"format", after}});
    } else if (before == after) {
      say("{}: format {} is up to date\n", call.arguments[0], after);
    } else {
      say("{}: format {} is now {}\n", call.arguments[0], before, after);
    }
  }

 private:
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Verb> upgrade_verb() { return std::make_unique<Upgrade>(); }

}  // namespace mneme::cli
