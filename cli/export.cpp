// mneme export: a compact copy of a memory file, also while it is in use.
#include "mneme/core/error.h"
#include "mneme/memory/memory_file.h"

#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <filesystem>

namespace mneme::cli {
namespace {

class Export final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::memory_file,
            "export",
            "copy a memory file, also while others use it",
            {{"FILE", "a memory file"}},
            {"mneme export handbook.mneme -o backup.mneme"}};
  }

  void declare(Flags& flags) override {
    flags("-o,--output", output_, "FILE", "the copy; it must not exist yet");
    flags("--json", json_, "print one JSON object");
  }

  void run(const Invocation& call) override {
    if (output_.empty()) throw Error(Errc::usage, "-o FILE is missing: where is the copy to go?");
    MemoryFile::open(call.arguments[0], MemoryFile::Access::read_only)->export_to(output_);
    const auto bytes = static_cast<std::int64_t>(std::filesystem::file_size(output_));
    if (json_) {
      print_json({{"output", output_}, {"file_bytes", bytes}});
    } else {
      say("{}: {}\n", output_, as_size(bytes));
    }
  }

 private:
  std::string output_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Verb> export_verb() { return std::make_unique<Export>(); }

}  // namespace mneme::cli
