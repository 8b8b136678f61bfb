// Chatting and writing on from memory: spans are placed together, earlier turns stand between them and the new question.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>

#include "mneme/core/error.h"
#include "mneme/memory/clock.h"
#include "mneme/memory/embedding_rep.h"
#include "mneme/decode/generate.h"
#include "mneme/memory/memory.h"
#include "mneme/memory/span_states.h"

namespace mneme {
namespace {

using memory::seconds_since;

constexpr std::int64_t kChatSpans = 2;
// Tokens of earlier turns that stay in the context; what is older becomes spans of the session's memory.
constexpr std::int64_t kTurnTokens = 1024;
// Turns whose text helps to find what a follow-up question is about.
constexpr std::size_t kTurnsForRetrieval = 2;
// Spans that are placed before the text to be continued.
constexpr std::size_t kContinueSpans = 6;

/// A question and its answer, as they stand in a session.
struct Exchange {
  std::int64_t first = 0, last = 0;  ///< turn numbers
  std::string question, answer;
  std::vector<std::int64_t> provenance;
};

/// The exchanges whose turns come after number `after`. A question whose answer was forgotten stands for nothing.
std::vector<Exchange> exchanges_after(const std::vector<Turn>& turns, std::int64_t after) {
  std::vector<Exchange> out;
  for (std::size_t i = 0; i + 1 < turns.size(); ++i) {
    const auto &question = turns[i], &answer = turns[i + 1];
    if (question.number <= after || question.role != "user" || answer.role != "assistant") continue;
    out.push_back({question.number, answer.number, question.text, answer.text, answer.provenance});
  }
  return out;
}

std::string moved_label(const std::string& session, std::int64_t first, std::int64_t last) { return fmt::format("{} turns {}-{}", session, first, last); }

/// The number of the last turn that became a document of the session: it stands at the end of the document's label.
std::int64_t last_moved(const std::vector<DocumentInfo>& documents, const std::string& session) {
  std::int64_t last = 0;
  for (const auto& info : documents) {
    if (info.session != session) continue;
    const auto& label = info.document.label;
    const auto dash = label.rfind('-');
    std::int64_t number = 0;
    if (dash != std::string::npos) std::from_chars(label.data() + dash + 1, label.data() + label.size(), number);
    last = std::max(last, number);
  }
  return last;
}

}  // namespace

std::int64_t Memory::move_old_turns(const std::string& session, const std::vector<Turn>& turns) {
  const auto& tokenizer = *reader().model().tokenizer;
  const auto exchanges = exchanges_after(turns, last_moved(file_->documents(), session));
  std::int64_t tokens = 0;
  auto kept = exchanges.size();
  while (kept > 0 && tokens < kTurnTokens) {
    --kept;
    tokens += static_cast<std::int64_t>(tokenizer.encode(exchanges[kept].question).size() + tokenizer.encode(exchanges[kept].answer).size());
  }
  if (kept == 0) return 0;
  std::string text;
  std::vector<std::int64_t> provenance;
  for (std::size_t i = 0; i < kept; ++i) {
    text += fmt::format("User: {}\nAssistant: {}\n\n", exchanges[i].question, exchanges[i].answer);
    provenance.insert(provenance.end(), exchanges[i].provenance.begin(), exchanges[i].provenance.end());
  }
  std::sort(provenance.begin(), provenance.end());
  provenance.erase(std::unique(provenance.begin(), provenance.end()), provenance.end());
  const auto embedder = models_->embedder("");
  auto document = document_from_text(moved_label(session, exchanges.front().first, exchanges[kept - 1].last), std::move(text));
  const auto spans = cut_spans(document.text, document.media, [&](std::string_view piece) { return static_cast<std::int64_t>(tokenizer.encode(piece).size()); });
  std::vector<Rep> reps;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    if (spans[i].kind != "passage") continue;
    const auto embedding = embedder->embed(std::string_view(document.text).substr(static_cast<std::size_t>(spans[i].begin), static_cast<std::size_t>(spans[i].end - spans[i].begin)));
    reps.push_back(memory::embedding_rep(static_cast<std::int64_t>(i), *embedder, embedding));
  }
  MemoryFile::PutOptions put;
  put.session = session;
  put.provenance = std::move(provenance);
  file_->put_document(document, spans, reps, put);
  return 2 * static_cast<std::int64_t>(kept);
}

ChatReply Memory::chat(const std::string& session, const std::string& message, std::int64_t max_tokens, const Chain& sampler, std::uint64_t seed,
                       const std::function<bool(std::string_view)>& on_text) {
  const c10::InferenceMode inference;
  const auto started = std::chrono::steady_clock::now();
  if (message.find_first_not_of(" \t\r\n") == std::string::npos) throw Error(Errc::usage, "the message is empty");
  ChatReply out;
  auto& reader = this->reader();
  const auto& model = reader.model();
  const auto turns = file_->turns(session);
  if (file_->writable() && !turns.empty()) out.moved_to_memory = move_old_turns(session, turns);
  const auto recent = exchanges_after(turns, last_moved(file_->documents(), session));

  // A follow-up ("and when?") is found by the turns before it.
  std::string context;
  for (auto i = turns.size() - std::min(turns.size(), kTurnsForRetrieval); i < turns.size(); ++i) context += turns[i].text + "\n";
  auto candidates = retrieve(message, 20, {}, true);
  auto relevance = search::relevance(candidates);
  if (!context.empty()) {
    auto with_context = retrieve(context + message, 20, {}, true);
    if (relevance < prompt_.not_found_below) {
      candidates = std::move(with_context);
      relevance = search::relevance(candidates);
    }
  }
  const bool from_memory = relevance >= prompt_.not_found_below;

  State state;
  std::vector<std::int32_t> prompt;
  std::vector<std::int64_t> provenance;
  std::vector<memory::PlacedSpan> placed;
  std::optional<memory::SpanStates> states;
  GenerateOptions generation;
  generation.max_tokens = max_tokens;
  generation.sampler = sampler;
  generation.seed = seed;
  generation.on_text = on_text;
  if (from_memory) {
    state = reader.prefix();
    states.emplace(*file_, reader);
    const auto labels = this->labels();
    auto room = reader.room() - kTurnTokens - max_tokens;
    std::vector<std::int64_t> ids;
    for (const auto& candidate : candidates) {
      if (static_cast<std::int64_t>(placed.size()) == kChatSpans) break;
      const auto span = file_->find_span(candidate.id);
      if (!span || span->tokens + 16 > room) continue;
      room -= span->tokens + 16;
      placed.push_back({file_.get(), *span, labels.at(span->document), candidate.score});
      ids.push_back(span->id);
      provenance.push_back(span->document);
    }
    auto loaded = states->load(ids);
    for (auto i = loaded.size(); i-- > 0;) reader.place(state, loaded[i].state);
    // Earlier turns take the form that the prompt gives questions and answers.
    std::string earlier;
    for (const auto& exchange : recent) {
      earlier += prompt_.question_before + exchange.question + prompt_.question_after + exchange.answer + prompt_.answer_ends_at + prompt_.span_after;
    }
    prompt = model.tokenizer->encode(earlier);
    const auto question = reader.question_ids(message);
    prompt.insert(prompt.end(), question.begin(), question.end());
    generation.stop = {"\n"};
    if (!prompt_.answer_ends_at.empty()) generation.stop.push_back(prompt_.answer_ends_at);
  } else {
    if (!model.chat) throw Error(Errc::unsupported, fmt::format("nothing in memory has to do with this, and {} has no chat template to talk without it", model.name));
    state = model.model->start(1);
    std::vector<ChatMessage> messages;
    for (const auto& exchange : recent) {
      messages.push_back({"user", exchange.question});
      messages.push_back({"assistant", exchange.answer});
    }
    messages.push_back({"user", message});
    prompt = model.chat->encode_chat(*model.tokenizer, messages, true);
    out.note = "not from memory: nothing in it has to do with this";
  }
  auto said = decode::generate(model, prompt, state, generation);
  out.text = said.text;
  while (!out.text.empty() && (out.text.back() == ' ' || out.text.back() == '\n')) out.text.pop_back();
  out.tokens = static_cast<std::int64_t>(said.ids.size());
  if (said.stop_reason == "context") out.note = "the reply ends early: the model's context is full";
  out.citations = memory::citations_of(placed, out.text).list;
  // Both turns together: a question without its answer would stand in the way of the next.
  if (said.stop_reason != "interrupted" || !out.text.empty()) {
    const Turn both[] = {{0, "user", message, {}, {}, memory::unix_seconds()}, {0, "assistant", out.text, {}, provenance, memory::unix_seconds()}};
    file_->append_turns(session, both);
  }
  if (states) states->store();
  out.seconds = seconds_since(started);
  return out;
}

Memory::Continuation Memory::continue_text(std::int64_t max_tokens, const Chain& sampler, std::uint64_t seed, const std::string& source,
                                           const std::function<bool(std::string_view)>& on_text) {
  const c10::InferenceMode inference;
  const auto started = std::chrono::steady_clock::now();
  auto& reader = this->reader();
  std::optional<DocumentInfo> document;
  if (source.empty()) {
    for (auto& info : file_->documents()) {
      if (info.session.empty()) document = std::move(info);
    }
    if (!document) throw Error(Errc::not_found, fmt::format("{} holds no source to continue: read one first", file_->path().string()));
  } else {
    document = file_->find_document(source);
    if (!document) throw Error(Errc::not_found, fmt::format("{} holds no source '{}': see `mneme show`", file_->path().string(), source));
  }
  std::vector<Span> passages;
  for (auto& span : file_->spans(document->document.id)) {
    if (span.kind == "passage") passages.push_back(std::move(span));
  }
  if (passages.empty()) throw Error(Errc::not_found, fmt::format("the source '{}' holds no text to continue", document->document.label));
  Continuation out;
  auto state = reader.prefix();
  memory::SpanStates states(*file_, reader);
  // The last passage is run as it stands, without what the prompt puts behind a span, so that the text goes on from it.
  const auto last = passages.back();
  passages.pop_back();
  std::vector<std::int64_t> ids;
  auto room = reader.room() - max_tokens - last.tokens;
  for (auto i = passages.size(); i-- > 0 && ids.size() < kContinueSpans;) {
    if (passages[i].tokens + 16 > room) break;
    room -= passages[i].tokens + 16;
    ids.insert(ids.begin(), passages[i].id);
  }
  for (const auto& loaded : states.load(ids)) {
    reader.place(state, loaded.state);
    out.tokens_placed += loaded.state.tokens;
  }
  const auto prompt = reader.model().tokenizer->encode(prompt_.span_before + file_->span_text(last.id));
  GenerateOptions generation;
  generation.max_tokens = max_tokens;
  generation.sampler = sampler;
  generation.seed = seed;
  generation.on_text = on_text;
  const auto said = decode::generate(reader.model(), prompt, state, generation);
  out.text = said.text;
  out.stop_reason = said.stop_reason;
  out.generated_tokens = static_cast<std::int64_t>(said.ids.size());
  out.document_tokens_evaluated = states.tokens_evaluated() + said.prompt_tokens;
  states.store();
  out.seconds = seconds_since(started);
  return out;
}

}  // namespace mneme
