// mneme read: texts into a memory file.
#include "mneme/core/error.h"
#include "mneme/core/log.h"
#include "mneme/core/progress.h"
#include "mneme/memory/memory.h"
#include "mneme/text/span.h"

#include "cli/program/interrupt.h"
#include "cli/program/new_file.h"
#include "cli/program/output.h"
#include "cli/program/sources.h"
#include "cli/program/states.h"
#include "cli/program/verb.h"
#include <algorithm>
#include <filesystem>
#include <fmt/format.h>
#include <optional>

namespace mneme::cli {
namespace {

class Read final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {
        Group::main_job,
        "read",
        "read texts into a memory file, new or not",
        {{"PATH", "a text, Markdown or source file, a folder of them, or `-` for standard input",
          true, true}},
        {"mneme read handbook.txt notes/ -o handbook.mneme",
         "pdftotext report.pdf - | mneme read - --label report.pdf -o reports.mneme"},
        "A source that the memory holds already is read again only if its text has changed. States "
        "(what the model has computed of a "
        "span) are stored at the first question that needs them, or now with --eager; only they "
        "count against the budget."};
  }

  void declare(Flags& flags) override {
    flags("-o,--output", output_, "FILE", "the memory file");
    flags("--model", model_, "NAME",
          "language model: a known name, a GGUF file, a model folder; unset: the memory's, or "
          "smollm2");
    flags("--embedder", embedder_, "NAME",
          "model that embeds spans for search; unset: the memory's, or minilm");
    flags("--adapter", adapter_, "NAME",
          "adapter that answers are read with: a known name, a file of `mneme train`, none; unset: "
          "the memory's, or the model's own");
    flags(
        "--budget", budget_, "SIZE", MemoryFile::kMinBudgetBytes,
        "what the file may take while states can give way, as 64MiB; unset: the memory's, or 1GiB");
    flags("--memory,--kv", kv_, "SPEC",
          "what is kept of each span, only for a new memory, as \"snapkv | keep(ratio=0.5) | "
          "quantize(bits=8)\"; unset: \"quantize(bits=8)\"");
    flags("--consolidate", consolidate_, "SPECS",
          "what becomes of states when the budget is full, step by step, only for a new memory, as "
          "\"quantize(bits=4); keydiff | keep(ratio=0.5)\"; unset: \"quantize(bits=4)\"");
    flags("--context", context_, std::vector<std::string>{"span", "stream"},
          "what a span is read behind: the prompt alone, or all text before it; unset: the "
          "memory's, or span");
    flags("--eager,!--lazy", eager_, "compute states now, or at first use");
    flags("--sync", sync_, "wait for the disk also where only computed states could be lost");
    flags("--label", label_, "NAME",
          "what the source is cited as, in place of its path; of several, the one that comes from "
          "`-` or a pipe");
    flags("--dry-run", dry_run_, "cut and count, store nothing");
    flags("--json", json_, "print one JSON object");
  }

  void run(const Invocation& call) override {
    if (output_.empty() && !dry_run_)
      throw Error(Errc::usage, "-o FILE is missing: which memory file is to be written?");
    const auto sources = list_sources(call.arguments, label_);
    auto models = std::make_shared<MemoryModels>(model_, embedder_, adapter_);
    if (dry_run_) {
      count(sources, *models);
      return;
    }
    const std::filesystem::path path = output_;
    const NewFile made(path);
    ReadReport report;
    std::unique_ptr<Memory> memory;
    std::int64_t consolidated_before = 0;
    for_documents(sources.sources, [&](std::vector<Document> documents) {
      if (!memory) {  // opened only now: a text that cannot be read leaves no file behind
        if (!call.everywhere.quiet) {
          tell_skipped(sources);
          tell_nameless(sources);
        }
        memory = open(path, models);
        consolidated_before = memory->file().usage().consolidated_spans;
      }
      add(report, read(*memory, std::move(documents)));
      return !report.interrupted;
    });
    report.usage = memory->file().usage();
    memory->file().close();
    memory.reset();
    const auto file_bytes = static_cast<std::int64_t>(std::filesystem::file_size(path));
    if (json_) {
      print_report(report, file_bytes, sources);
    } else if (!call.everywhere.quiet) {
      describe(report, file_bytes, report.usage.consolidated_spans > consolidated_before);
    }
    flush();
    if (report.interrupted) throw Interrupted();
  }

 private:
  std::unique_ptr<Memory> open(const std::filesystem::path& path,
                               const std::shared_ptr<MemoryModels>& models) const {
    std::error_code error;
    if (!std::filesystem::exists(path, error)) {
      // Models that cannot be had are found out before there is a file.
      models->language_model("");
      models->embedder("");
    }
    MemoryOptions options;
    options.access = MemoryFile::Access::create;
    options.kv = kv_;
    options.consolidate = consolidate_;
    options.budget_bytes = budget_.bytes;
    auto memory = Memory::open(path, models, options);
    if (!memory->file().writable())
      throw Error(Errc::io,
                  path.string() + ": cannot be written: the file or its folder is read-only");
    if (budget_.bytes) {
      const auto given_up = memory->set_budget(*budget_.bytes);
      if (given_up.shrunk + given_up.dropped > 0) {
        log::info("the smaller budget made {} states smaller and {} text only", given_up.shrunk,
                  given_up.dropped);
      }
    }
    return memory;
  }

  ReadReport read(Memory& memory, std::vector<Document> documents) const {
    ReadOptions options;
    options.eager = eager_;
    const auto context =
        context_.empty() ? memory.file().meta("context").value_or("span") : context_;
    options.context = context == "stream" ? ContextMode::stream : ContextMode::span;
    options.sync = sync_;
    options.cancelled = interrupted;
    const auto n = static_cast<std::int64_t>(documents.size());
    std::optional<Progress> bar;
    std::string shown;
    options.progress = [&](std::string_view what, std::int64_t done, std::int64_t total) {
      if (shown != what) {
        bar.reset();
        bar.emplace(fmt::format("{} {}", what, counted(n, "source")), total,
                    what == "indexing" ? "bytes" : "tokens");
        shown = what;
      }
      bar->advance(done);
    };
    return memory.read(std::move(documents), options);
  }

  static void add(ReadReport& sum, ReadReport part) {
    sum.sources.insert(sum.sources.end(), std::make_move_iterator(part.sources.begin()),
                       std::make_move_iterator(part.sources.end()));
    sum.tokens_read += part.tokens_read;
    sum.seconds += part.seconds;
    sum.states_computed += part.states_computed;
    sum.states_stored += part.states_stored;
    if (!part.obstacle.empty()) sum.obstacle = std::move(part.obstacle);
    sum.interrupted = part.interrupted;
  }

  static void tell_skipped(const Sources& sources) {
    if (sources.skipped.empty()) return;
    if (log::enabled(log::Level::info)) {
      for (const auto& file : sources.skipped)
        log::info("left out: {} ({})", one_line(file.path.string()), file.reason);
    } else {
      log::warn("{} (--log-level info names them)", describe_skipped(sources.skipped));
    }
  }

  static void tell_nameless(const Sources& sources) {
    for (const auto& source : sources.sources) {
      if (source.nameless)
        log::warn("{} will be cited as '{}': --label gives it a name", source.path, source.label);
    }
  }

  /// "a, b, c and 4 more"
  static std::string named(const std::vector<std::string>& names) {
    constexpr std::size_t kNamed = 3;
    std::string out;
    for (std::size_t i = 0; i < std::min(names.size(), kNamed); ++i)
      out += (i == 0 ? "" : ", ") + one_line(names[i]);
    if (names.size() > kNamed) out += fmt::format(" and {} more", names.size() - kNamed);
    return out;
  }

  /// --dry-run: what the texts would be cut into.
  void count(const Sources& sources, MemoryModels& models) const {
    tell_skipped(sources);
    std::string of_memory;
    std::error_code error;
    if (!output_.empty() && std::filesystem::exists(output_, error)) {
      of_memory =
          MemoryFile::open(output_, MemoryFile::Access::read_only)->meta("model").value_or("");
    }
    const auto model = models.language_model(of_memory);
    ReadReport report;
    for_documents(sources.sources, [&](std::vector<Document> documents) {
      for (const auto& document : documents) {
        stop_if_interrupted();
        SourceReport source;
        source.name = document.label;
        source.bytes = static_cast<std::int64_t>(document.text.size());
        source.outcome = "counted";
        const auto spans = cut_spans(document.text, document.media, [&](std::string_view text) {
          return static_cast<std::int64_t>(model->tokenizer->encode(text).size());
        });
        for (const auto& span : spans) {
          if (span.kind != "passage") continue;
          ++source.spans;
          source.tokens += span.tokens;
        }
        report.tokens_read += source.tokens;
        report.sources.push_back(std::move(source));
      }
      return true;
    });
    if (json_) {
      print_report(report, 0, sources);
      return;
    }
    std::int64_t spans = 0;
    for (const auto& source : report.sources) {
      spans += source.spans;
      say("{}: {} in {}\n", one_line(source.name), counted(source.tokens, "token"),
          counted(source.spans, "span"));
    }
    say("{}: {} in {}; nothing was stored\n",
        counted(static_cast<std::int64_t>(report.sources.size()), "source"),
        counted(report.tokens_read, "token"), counted(spans, "span"));
  }

  void print_report(const ReadReport& report, std::int64_t file_bytes,
                    const Sources& sources) const {
    Json out{{"sources", Json::array()}};
    for (const auto& source : report.sources) {
      out["sources"].push_back({{"name", source.name},
                                {"tokens", source.tokens},
                                {"spans", source.spans},
                                {"bytes", source.bytes},
                                {"with_states", source.with_states},
                                {"outcome", source.outcome}});
    }
    out["tokens_read"] = report.tokens_read;
    out["seconds"] = report.seconds;
    out["state_bytes"] = report.usage.state_bytes;
    out["file_bytes"] = file_bytes;
    out["budget_bytes"] = report.usage.budget_bytes;
    out["consolidated_spans"] = report.usage.consolidated_spans;
    out["states_computed"] = report.states_computed;
    out["states_stored"] = report.states_stored;
    out["states_obstacle"] = report.obstacle;
    out["interrupted"] = report.interrupted;
    out["dry_run"] = dry_run_;
    out["skipped"] = Json::array();
    for (const auto& file : sources.skipped)
      out["skipped"].push_back({{"path", file.path.string()}, {"reason", file.reason}});
    print_json(out);
  }

  /// `consolidated`: whether states gave way to the budget.
  void describe(const ReadReport& report, std::int64_t file_bytes, bool consolidated) const {
    std::int64_t spans = 0, unchanged = 0;
    std::vector<std::string> replaced, resumed;
    for (const auto& source : report.sources) {
      spans += source.spans;
      unchanged += source.outcome == "unchanged";
      if (source.outcome == "replaced") replaced.push_back(source.name);
      if (source.outcome == "resumed") resumed.push_back(source.name);
    }
    const auto n = static_cast<std::int64_t>(report.sources.size());
    say("{}: {}, {} in {}, {}", bold(output_), counted(n, "source"),
        counted(report.tokens_read, "token"), counted(spans, "span"), as_duration(report.seconds));
    if (report.seconds > 0 && report.tokens_read > 0)
      say(" ({} tokens/s)",
          with_separators(std::llround(static_cast<double>(report.tokens_read) / report.seconds)));
    say("\n");
    if (unchanged > 0) say("  {} had not changed\n", counted(unchanged, "source"));
    if (!replaced.empty())
      say("  replaced: {}, which held {}\n", named(replaced),
          replaced.size() == 1 ? "another text" : "other texts");
    if (!resumed.empty())
      say("  resumed: {}, where an earlier reading was interrupted\n", named(resumed));
    say("  {} on disk; states {} of {} for {} of {}\n", as_size(file_bytes),
        as_size(report.usage.state_bytes), as_size(report.usage.budget_bytes),
        with_separators(report.usage.spans_with_states), counted(report.usage.spans, "span"));
    if (consolidated || !report.obstacle.empty()) say("  {}\n", describe_states(report.usage));
    if (!report.obstacle.empty()) say("  not all states were stored: {}\n", report.obstacle);
    if (report.interrupted)
      say("  interrupted: what was read is stored; the same command goes on from here\n");
  }

  std::string output_, model_, embedder_, adapter_, kv_, consolidate_, context_, label_;
  ByteSize budget_;
  bool eager_ = false, sync_ = false, dry_run_ = false, json_ = false;
};

}  // namespace

std::unique_ptr<Verb> read_verb() { return std::make_unique<Read>(); }

}  // namespace mneme::cli
