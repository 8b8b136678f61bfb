// mneme search: the spans of a memory file that have to do with a query, without a language model.
#include "mneme/core/error.h"
#include "mneme/memory/memory.h"

#include "cli/program/citations.h"
#include "cli/program/input.h"
#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <algorithm>

namespace mneme::cli {
namespace {

class Search final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::memory_file,
            "search",
            "find spans in a memory file, by meaning and by words",
            {{"FILE", "a memory file"},
             {"QUERY", "what to look for; `-` takes it from standard input"}},
            {"mneme search handbook.mneme \"travel approval\" --limit 5"}};
  }

  void declare(Flags& flags) override {
    flags("--limit", limit_, "N", within(1, 10000), "spans at most");
    flags("--source", sources_, "LABEL", "only this source; may be repeated");
    flags("--embedder", embedder_, "NAME", "embedder; unset: the memory's");
    flags("--json", json_, "print one JSON object");
  }

  void run(const Invocation& call) override {
    MemoryOptions open;
    open.access = MemoryFile::Access::read_only;
    const auto memory =
        Memory::open(call.arguments[0], std::make_shared<MemoryModels>("", embedder_), open);
    const auto found = memory->search(text_or_input(call.arguments[1], "query"), limit_, sources_);
    const auto line = [&](const CandidateReport& report) {
      const auto span = memory->file().find_span(report.candidate.id);
      return span ? memory::line_of(memory->file(), span->document, report.begin) : 1;
    };
    if (json_) {
      Json out{{"results", Json::array()}};
      for (const auto& report : found) {
        out["results"].push_back({{"source", report.source},
                                  {"start", report.begin},
                                  {"end", report.end},
                                  {"line", line(report)},
                                  {"excerpt", report.excerpt},
                                  {"score", report.candidate.score},
                                  {"cosine", report.candidate.cosine},
                                  {"cover", report.candidate.cover},
                                  {"rrf", report.candidate.rrf}});
      }
      print_json(out);
      return;
    }
    if (found.empty()) say("nothing found\n");
    for (std::size_t i = 0; i < found.size(); ++i) {
      say("{} {:.3f} {}:{} {}\n", bold(fmt::format("{:>3}", i + 1)), found[i].candidate.score,
          one_line(found[i].source), line(found[i]),
          faint("\"" + one_line(found[i].excerpt) + "\""));
    }
  }

 private:
  std::int64_t limit_ = 10;
  std::vector<std::string> sources_;
  std::string embedder_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Verb> search_verb() { return std::make_unique<Search>(); }

}  // namespace mneme::cli
