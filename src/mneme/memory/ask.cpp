// Asking: retrieve, place stored states behind the shared prefix, run the question alone, cite what was read.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>

#include "mneme/core/error.h"
#include "mneme/memory/clock.h"
#include "mneme/memory/memory.h"
#include "mneme/memory/quotation.h"
#include "mneme/memory/span_states.h"

namespace mneme {
namespace {

using memory::seconds_since;

constexpr std::int64_t kRetrieved = 20;
constexpr std::int64_t kTopEach = 3, kTopTogether = 2;
constexpr const char* kNotFound = "not found in memory";
constexpr std::int64_t kExcerptChars = 200;

/// A span that may be placed: which memory it is from and what is known of it.
struct Found {
  Memory* memory;
  Candidate candidate;
  Span span;
  std::string source, text;
};

Citation cite(const Found& found, std::string_view answer) {
  Citation out;
  const auto document = found.memory->file().document_text(found.span.document, 0, found.span.begin);
  out.source = found.source;
  out.start = found.span.begin;
  out.end = found.span.end;
  out.line = 1 + std::count(document.begin(), document.end(), '\n');
  out.score = found.candidate.score;
  out.span = found.span.id;
  out.file = found.memory->file().path().string();
  const auto quotation = memory::find_quotation(found.text, answer);
  out.holds_answer = quotation.has_value();
  // The excerpt shows the answer's words with some text before them.
  std::int64_t from = 0;
  if (quotation && quotation->second > kExcerptChars) {
    from = std::max<std::int64_t>(0, quotation->first - kExcerptChars / 3);
    while (from > 0 && found.text[static_cast<std::size_t>(from - 1)] != ' ' && found.text[static_cast<std::size_t>(from - 1)] != '\n') --from;
  }
  out.excerpt = excerpt(found.text, from, static_cast<std::int64_t>(found.text.size()), kExcerptChars);
  return out;
}

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

std::vector<Citation> citations_of(const std::vector<Found>& placed, std::string_view answer, std::optional<std::size_t> read_from, bool& quotation) {
  std::vector<Citation> all;
  for (const auto& found : placed) all.push_back(cite(found, answer));
  std::vector<Citation> out;
  if (read_from) {  // the answer was read from this span alone: it comes first, whatever else holds its words
    quotation = all[*read_from].holds_answer;
    out.push_back(all[*read_from]);
    for (std::size_t i = 0; quotation && i < all.size(); ++i) {
      if (i != *read_from && all[i].holds_answer) out.push_back(all[i]);
    }
    return out;
  }
  quotation = std::any_of(all.begin(), all.end(), [](const Citation& c) { return c.holds_answer; });
  for (auto& citation : all) {
    if (citation.holds_answer || !quotation) out.push_back(std::move(citation));
  }
  return out;
}

/// Those of the labels that a memory holds: of several memories a source is in one or another.
std::vector<std::string> sources_in(Memory& memory, const std::vector<std::string>& sources) {
  std::vector<std::string> out;
  for (const auto& info : memory.documents()) {
    if (std::find(sources.begin(), sources.end(), info.document.label) != sources.end()) out.push_back(info.document.label);
  }
  return out;
}

/// Throws Error(not_found) for a label that none of the memories holds.
void check_sources(const std::vector<Memory*>& memories, const std::vector<std::string>& sources) {
  for (const auto& source : sources) {
    if (std::all_of(memories.begin(), memories.end(), [&](Memory* memory) { return sources_in(*memory, {source}).empty(); })) {
      throw Error(Errc::not_found, fmt::format("none of these memories holds a source '{}': see `mneme show`", source));
    }
  }
}

}  // namespace

Answer Memory::ask(const std::string& question, const AskOptions& options) { return mneme::ask({this}, question, options); }

Answer ask(const std::vector<Memory*>& memories, const std::string& question, const AskOptions& options) {
  MNEME_ASSERT(!memories.empty());
  for (auto* memory : memories) memory->load_index();  // loading models and indexes is not part of answering
  auto started = std::chrono::steady_clock::now();
  Answer out;
  out.model = memories.front()->model_name();
  out.kv = memories.front()->kv();
  out.threshold = memories.front()->prompt().not_found_below;

  // Retrieval over all memories; the first spans of each compete by score.
  if (memories.size() > 1) check_sources(memories, options.sources);
  std::vector<Found> found;
  const auto query = options.retrieval_context.empty() ? question : options.retrieval_context + "\n" + question;
  for (auto* memory : memories) {
    std::map<std::int64_t, std::string> labels;
    for (const auto& info : memory->documents()) {
      out.tokens_in_memory += info.tokens;
      labels.emplace(info.document.id, info.document.label);
    }
    const auto sources = memories.size() == 1 ? options.sources : sources_in(*memory, options.sources);
    if (sources.empty() && !options.sources.empty()) continue;
    const auto candidates = memory->retrieve(query, kRetrieved, sources, false);
    out.relevance = std::max(out.relevance, search::relevance(candidates));
    for (const auto& candidate : candidates) {
      const auto span = memory->file().find_span(candidate.id);
      if (span) found.push_back({memory, candidate, *span, labels.at(span->document), ""});
    }
  }
  if (memories.size() > 1) {
    std::stable_sort(found.begin(), found.end(), [](const Found& a, const Found& b) { return a.candidate.score > b.candidate.score; });
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
  const auto top = static_cast<std::size_t>(options.top > 0 ? options.top : each ? kTopEach : kTopTogether);
  std::vector<Found> placed;
  std::int64_t room = memories.front()->reader().room();
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
  if (placed.empty()) throw Error(Errc::full, fmt::format("none of the spans found fits the model's context beside the prompt: {} tokens were left out", out.tokens_dropped));

  auto& reader = memories.front()->reader();
  Loading loading(placed);
  for (std::size_t i = 0; i < placed.size(); ++i) {
    out.tokens_placed += loading.loaded[i].state.tokens;
    out.state_bytes += loading.loaded[i].bytes;
  }
  for (const auto& [memory, states] : loading.states) out.document_tokens_evaluated += states.tokens_evaluated();

  std::vector<State> rows;
  if (each) {
    for (std::size_t i = 0; i < placed.size(); ++i) {
      rows.push_back(reader.prefix());
      reader.place(rows.back(), loading.loaded[i].state);
    }
  } else {
    rows.push_back(reader.prefix());
    for (std::size_t i = placed.size(); i-- > 0;) reader.place(rows.back(), loading.loaded[i].state);  // best last, next to the question
  }
  const auto max_tokens = options.max_tokens > 0 ? options.max_tokens : reader.prompt().max_tokens;
  const auto before_question = seconds_since(started);
  auto read = reader.answer(std::move(rows), question, max_tokens);
  out.first_token_s = before_question + read.first_token_seconds;
  out.question_tokens = read.question_tokens;
  std::int64_t longest = 0;
  for (const auto& row : read.rows) {
    out.generated_tokens += row.tokens;
    longest = std::max(longest, row.tokens);
  }
  if (read.decode_seconds > 0) out.decode_tokens_per_s = static_cast<double>(out.generated_tokens) / read.decode_seconds;

  // Of answers read apart, retrieval rank and the answer's own likelihood choose; an empty answer is none.
  std::size_t best = 0;
  if (each) {
    const auto score = [&](std::size_t i) {
      return read.rows[i].text.empty() ? -std::numeric_limits<double>::infinity() : read.rows[i].mean_log_probability - std::log(static_cast<double>(i + 1));
    };
    for (std::size_t i = 1; i < read.rows.size(); ++i) {
      if (score(i) > score(best)) best = i;
    }
  }
  out.answer = read.rows[best].text;
  out.found = !out.answer.empty();
  if (!out.found) out.answer = kNotFound;
  if (out.found) out.citations = citations_of(placed, out.answer, each ? std::optional(best) : std::nullopt, out.quotation);
  for (std::size_t i = 0; i < placed.size(); ++i) {
    const auto at = std::find_if(out.candidates.begin(), out.candidates.end(), [&](const CandidateReport& c) {
      return c.candidate.id == placed[i].candidate.id && c.file == placed[i].memory->file().path().string();
    });
    at->placed = true;
    at->had_state = loading.loaded[i].from_file;
    if (each) {
      at->answer = read.rows[i].text;
      at->answer_log_probability = read.rows[i].mean_log_probability;
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
