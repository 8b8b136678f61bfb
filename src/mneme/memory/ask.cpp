// Asking: retrieve, place stored states behind the shared prefix, run the question alone, cite what was read.
#include "mneme/core/error.h"
#include "mneme/memory/choice.h"
#include "mneme/memory/clock.h"
#include "mneme/memory/memory.h"
#include "mneme/memory/span_states.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <fmt/format.h>
#include <map>

namespace mneme {
namespace {

using memory::kNotFound;
using memory::seconds_since;

constexpr std::int64_t kRetrieved = 20;
constexpr std::int64_t kTopTogether = 2;

/// A span that may be placed: which memory it is from and what is known of it.
struct Found {
  Memory* memory;
  Candidate candidate;
  Span span;
  std::string source, text;
};

/// The spans to place with their states, memory by memory, so that what a file lacks is computed in one go.
struct Loading {
  std::map<Memory*, memory::SpanStates> states;
  std::vector<memory::SpanStates::Loaded> loaded;

  explicit Loading(const std::vector<Found>& spans) : loaded(spans.size()) {
    std::map<Memory*, std::vector<std::size_t>> by_memory;
    for (std::size_t i = 0; i < spans.size(); ++i) by_memory[spans[i].memory].push_back(i);
    for (const auto& [memory, indices] : by_memory) {
      auto& of_memory = states.try_emplace(memory, memory->file(), memory->reader()).first->second;
      std::vector<std::int64_t> ids;
      for (auto i : indices) ids.push_back(spans[i].span.id);
      auto some = of_memory.load(ids);
      for (std::size_t j = 0; j < indices.size(); ++j) loaded[indices[j]] = std::move(some[j]);
    }
  }
};

/// Those of the labels that a memory holds: of several memories a source is in one or another.
std::vector<std::string> sources_in(Memory& memory, const std::vector<std::string>& sources) {
  std::vector<std::string> out;
  for (const auto& info : memory.documents()) {
    if (std::find(sources.begin(), sources.end(), info.document.label) != sources.end())
      out.push_back(info.document.label);
  }
  return out;
}

/// Throws Error(not_found) for a label that none of the memories holds.
void check_sources(const std::vector<Memory*>& memories, const std::vector<std::string>& sources) {
  for (const auto& source : sources) {
    if (std::all_of(memories.begin(), memories.end(),
                    [&](Memory* memory) { return sources_in(*memory, {source}).empty(); })) {
      throw Error(
          Errc::not_found,
          fmt::format("none of these memories holds a source '{}': see `mneme show`", source));
    }
  }
}

}  // namespace

Answer Memory::ask(const std::string& question, const AskOptions& options) {
  return mneme::ask({this}, question, options);
}

Answer ask(const std::vector<Memory*>& memories, const std::string& question,
           const AskOptions& options) {
  MNEME_ASSERT(!memories.empty());
  for (auto* memory : memories)
    memory->load_index();  // loading models and indexes is not part of answering
  auto started = std::chrono::steady_clock::now();
  Answer out;
  out.model = memories.front()->model_name();
  out.adapter = memories.front()->adapter();
  out.kv = memories.front()->kv();
  const auto& prompt = memories.front()->prompt();
  out.threshold = prompt.not_found_below;
  if (!prompt.refusal.empty()) out.confidence_wanted = prompt.refused_below;

  // Retrieval over all memories; the first spans of each compete by score.
  if (memories.size() > 1) check_sources(memories, options.sources);
  std::vector<Found> found;
  for (auto* memory : memories) {
    std::map<std::int64_t, std::string> labels;
    for (const auto& info : memory->documents()) {
      out.tokens_in_memory += info.tokens;
      labels.emplace(info.document.id, info.document.label);
    }
    const auto sources =
        memories.size() == 1 ? options.sources : sources_in(*memory, options.sources);
    if (sources.empty() && !options.sources.empty()) continue;
    const auto candidates =
        memory->retrieve(question, std::max(kRetrieved, options.top), sources, false);
    out.relevance = std::max(out.relevance, search::relevance(candidates));
    for (const auto& candidate : candidates) {
      const auto span = memory->file().find_span(candidate.id);
      if (span) found.push_back({memory, candidate, *span, labels.at(span->document), ""});
    }
  }
  if (memories.size() > 1) {
    std::stable_sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
      return a.candidate.score > b.candidate.score;
    });
  }
  out.retrieve_s = seconds_since(started);
  const auto report_candidates = [&] {
    for (const auto& f : found) {
      CandidateReport report;
      report.candidate = f.candidate;
      report.source = f.source;
      const auto text = f.text.empty() ? f.memory->file().span_text(f.span.id) : f.text;
      report.excerpt = excerpt(text, 0, static_cast<std::int64_t>(text.size()), 120);
      report.file = f.memory->file().path().string();
      report.begin = f.span.begin;
      report.end = f.span.end;
      out.candidates.push_back(std::move(report));
    }
  };
  if (found.empty() || (out.relevance < out.threshold && !options.always)) {
    report_candidates();
    out.answer = kNotFound;
    out.total_s = out.first_token_s = seconds_since(started);
    return out;
  }

  const auto loading_reader = std::chrono::steady_clock::now();
  for (auto* memory : memories) memory->reader();
  started += std::chrono::steady_clock::now() - loading_reader;

  // What is placed: the best spans that fit behind the prefix.
  const bool each = options.placement == Placement::each;
  auto& reader = memories.front()->reader();
  const auto top = static_cast<std::size_t>(options.top > 0 ? options.top
                                            : each          ? reader.prompt().spans_apart
                                                            : kTopTogether);
  std::vector<Found> placed;
  const auto max_tokens = options.max_tokens > 0 ? options.max_tokens : reader.prompt().max_tokens;
  std::int64_t room = reader.room(question, max_tokens);
  for (auto& f : found) {
    if (placed.size() == top) break;
    f.text = f.memory->file().span_text(f.span.id);
    const auto tokens = static_cast<std::int64_t>(f.memory->reader().span_ids(f.text).size());
    if (tokens > room) {
      out.tokens_dropped += tokens;
      continue;
    }
    if (!each) room -= tokens;
    placed.push_back(f);
  }
  report_candidates();
  if (placed.empty())
    throw Error(Errc::full, fmt::format("none of the spans found fits the model's context beside "
                                        "the prompt: {} tokens were left out",
                                        out.tokens_dropped));

  Loading loading(placed);
  for (std::size_t i = 0; i < placed.size(); ++i) {
    out.tokens_placed += loading.loaded[i].state.tokens;
    out.state_bytes += loading.loaded[i].bytes;
  }
  for (const auto& [memory, states] : loading.states)
    out.document_tokens_evaluated += states.tokens_evaluated();

  std::vector<State> rows;
  if (each) {
    for (std::size_t i = 0; i < placed.size(); ++i) {
      rows.push_back(reader.prefix());
      reader.place(rows.back(), loading.loaded[i].state);
    }
  } else {
    rows.push_back(reader.prefix());
    for (std::size_t i = placed.size(); i-- > 0;)
      reader.place(rows.back(), loading.loaded[i].state);  // best last, next to the question
  }
  const auto before_question = seconds_since(started);
  auto read = reader.answer(std::move(rows), question, max_tokens);
  out.first_token_s = before_question + read.first_token_seconds;
  out.question_tokens = read.question_tokens;
  std::int64_t longest = 0;
  for (const auto& row : read.rows) {
    out.generated_tokens += row.tokens;
    longest = std::max(longest, row.tokens);
  }
  if (read.decode_seconds > 0)
    out.decode_tokens_per_s = static_cast<double>(out.generated_tokens) / read.decode_seconds;

  std::vector<memory::ScoredAnswer> answers;
  for (std::size_t i = 0; i < read.rows.size(); ++i)
    answers.push_back({&read.rows[i], placed[i].candidate.score});
  const auto choice = memory::choose_answer(answers, out.relevance, reader.prompt());
  const auto best = choice.best;
  out.confidence = choice.confidence;
  out.answer = read.rows[best].text;
  out.found = !out.answer.empty() && (options.always || !choice.refused);
  out.cut = out.found && !read.rows[best].ended;
  if (!out.found) out.answer = kNotFound;
  if (out.found) {
    std::vector<memory::PlacedSpan> spans;
    for (const auto& f : placed)
      spans.push_back({&f.memory->file(), f.span, f.source, f.candidate.score});
    auto citations =
        memory::citations_of(spans, out.answer, each ? std::optional(best) : std::nullopt);
    out.citations = std::move(citations.list);
    out.quotation = citations.quotation;
  }
  for (std::size_t i = 0; i < placed.size(); ++i) {
    const auto at =
        std::find_if(out.candidates.begin(), out.candidates.end(), [&](const CandidateReport& c) {
          return c.candidate.id == placed[i].candidate.id &&
                 c.file == placed[i].memory->file().path().string();
        });
    at->placed = true;
    at->had_state = loading.loaded[i].from_file;
    if (i < read.rows.size()) {
      at->answer = read.rows[i].text;
      at->answer_log_probability = read.rows[i].mean_log_probability;
      at->refused = read.rows[i].refused;
    }
  }
  if (options.on_text) options.on_text(out.answer);
  out.total_s = seconds_since(started);

  // The answer is there: storing what had to be computed takes nothing from it, and failing to is no failure.
  for (auto& [memory, states] : loading.states) {
    const auto stored = states.store();
    out.states_stored += stored.stored;
    if (stored.not_stored > 0) out.states_obstacle = stored.reason;
    memory->file().add_counter("questions", 1);
  }
  return out;
}

}  // namespace mneme
