// Chatting and writing on from memory. A reader, a model that learned to answer questions from passages, replies as it
// answers: from each span apart, the best answer chosen; earlier turns say what a follow-up is about. Any other model has
// the spans placed together, and the earlier turns between them and the new message.
#include "mneme/core/error.h"
#include "mneme/core/log.h"
#include "mneme/decode/generate.h"
#include "mneme/memory/choice.h"
#include "mneme/memory/clock.h"
#include "mneme/memory/embedding_rep.h"
#include "mneme/memory/memory.h"
#include "mneme/memory/span_states.h"
#include "mneme/mixers/kv_store.h"
#include "mneme/models/kv_plan.h"
#include "mneme/models/locate.h"
#include "mneme/models/prepare.h"
#include "mneme/text/white_space.h"
#include "mneme/weights/digests.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <fmt/format.h>

namespace mneme {
namespace {

using memory::seconds_since;

constexpr std::int64_t kChatRetrieved = 20;
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

/// The last exchanges that together stay within kTurnTokens.
std::span<const Exchange> latest(std::span<const Exchange> exchanges, const Tokenizer& tokenizer) {
  std::size_t tokens = 0, n = 0;
  while (n < exchanges.size()) {
    const auto& exchange = exchanges[exchanges.size() - n - 1];
    tokens += tokenizer.encode(exchange.question).size() + tokenizer.encode(exchange.answer).size();
    if (tokens > static_cast<std::size_t>(kTurnTokens)) break;
    ++n;
  }
  return exchanges.last(n);
}

/// Words that stand for something said before.
constexpr std::string_view kPointers[] = {
    "it",   "its",  "he",    "him",   "his",   "she",  "her", "they", "them", "their",
    "this", "that", "these", "those", "there", "then", "and", "but",  "so"};

/// Whether a message can hardly be understood without what was said before: it points back, or it holds less to go by
/// than one word that no passage holds.
bool is_follow_up(std::string_view message, const LexicalIndex& index) {
  for (const auto& word : search::query_words(message)) {
    std::string lower(word);
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (std::find(std::begin(kPointers), std::end(kPointers), lower) != std::end(kPointers))
      return true;
  }
  return search::mass(search::weigh_terms(message, index)) <
         search::inverse_document_frequency(index.size(), 0);
}

/// The candidates of both, each once with its better score, best first.
std::vector<Candidate> merged(std::vector<Candidate> one, const std::vector<Candidate>& other) {
  for (const auto& candidate : other) {
    const auto same = std::find_if(one.begin(), one.end(),
                                   [&](const Candidate& c) { return c.id == candidate.id; });
    if (same == one.end()) {
      one.push_back(candidate);
    } else if (candidate.score > same->score) {
      *same = candidate;
    }
  }
  std::stable_sort(one.begin(), one.end(),
                   [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
  return one;
}

std::string moved_label(const std::string& session, std::int64_t first, std::int64_t last) {
  return fmt::format("{} turns {}-{}", session, first, last);
}

GenerateOptions generation_of(const ChatOptions& options) {
  GenerateOptions out;
  out.max_tokens = options.max_tokens;
  out.sampler = options.sampler;
  out.seed = options.seed;
  out.on_text = options.on_text;
  return out;
}

bool is_question(std::string_view message) { return text::trimmed(message).ends_with('?'); }

/// A reply and what it was made from.
struct Said {
  std::string text, stop_reason, note;
  std::int64_t tokens = 0;
  std::vector<Citation> citations;
  std::vector<std::int64_t> provenance;  ///< documents
};

std::vector<std::int64_t> ids_of(std::span<const memory::PlacedSpan> spans) {
  std::vector<std::int64_t> out;
  for (const auto& placed : spans) out.push_back(placed.span.id);
  return out;
}

/// What a turn may hold: a token of one byte may be zero, which no turn may hold.
std::string turn_text(std::string text) {
  std::erase(text, '\0');
  while (!text.empty() && (text.back() == ' ' || text.back() == '\n')) text.pop_back();
  return text;
}

Said said_by(Generation&& generation) {
  return {turn_text(std::move(generation.text)),
          std::move(generation.stop_reason),
          "",
          static_cast<std::int64_t>(generation.ids.size()),
          {},
          {}};
}

/// A reader's reply: the best of the answers that it reads from each span apart.
Said reply_apart(const Reader& reader, memory::SpanStates& states,
                 std::span<const memory::PlacedSpan> spans, double relevance,
                 const std::string& message, const ChatOptions& options) {
  Said out;
  out.text = memory::kNotFound;
  for (const auto& placed : spans) out.provenance.push_back(placed.span.document);
  if (!spans.empty()) {
    std::vector<State> rows;
    for (const auto& loaded : states.load(ids_of(spans))) {
      rows.push_back(reader.prefix());
      reader.place(rows.back(), loaded.state);
    }
    const auto read = reader.answer(std::move(rows), message, options.max_tokens);
    std::vector<memory::ScoredAnswer> answers;
    for (std::size_t i = 0; i < spans.size(); ++i)
      answers.push_back({&read.rows[i], spans[i].score});
    const auto choice = memory::choose_answer(answers, relevance, reader.prompt());
    const auto& best = read.rows[choice.best];
    if (choice.refused || best.text.empty()) {
      out.note = "the passages found do not say";
    } else {
      out.text = turn_text(best.text);
      out.tokens = best.tokens;
      out.stop_reason = best.ended ? "stop" : "length";
      out.citations = memory::citations_of(spans, out.text, choice.best).list;
      out.provenance = {spans[choice.best].span.document};
    }
  }
  if (options.on_text) options.on_text(out.text);
  return out;
}

/// A reply behind the spans placed together and the earlier turns, in the form that the prompt gives questions and answers.
Said reply_together(const Reader& reader, memory::SpanStates& states,
                    std::span<const memory::PlacedSpan> spans, std::span<const Exchange> earlier,
                    const std::string& message, const ChatOptions& options) {
  const auto& prompt = reader.prompt();
  auto state = reader.prefix();
  const auto loaded = states.load(ids_of(spans));
  for (auto i = loaded.size(); i-- > 0;) reader.place(state, loaded[i].state);
  std::string turns;
  for (const auto& exchange : earlier) {
    turns += prompt.question_before + exchange.question + prompt.question_after + exchange.answer +
             prompt.answer_ends_at + prompt.span_after;
  }
  auto ids = reader.model().tokenizer->encode(turns);
  const auto question = reader.question_ids(message);
  ids.insert(ids.end(), question.begin(), question.end());
  auto generation = generation_of(options);
  generation.stop = {"\n"};
  if (!prompt.answer_ends_at.empty()) generation.stop.push_back(prompt.answer_ends_at);
  auto out = said_by(decode::generate(reader.model(), ids, state, generation));
  out.citations = memory::citations_of(spans, out.text).list;
  for (const auto& placed : spans) out.provenance.push_back(placed.span.document);
  for (const auto& exchange : earlier)
    out.provenance.insert(out.provenance.end(), exchange.provenance.begin(),
                          exchange.provenance.end());
  return out;
}

/// A reply that is not from memory.
Said reply_freely(const LanguageModel& model, std::span<const Exchange> earlier,
                  const std::string& message, const ChatOptions& options) {
  if (!model.chat)
    throw Error(Errc::unsupported, fmt::format("nothing in memory has to do with this, and {} has "
                                               "no chat template to talk without it",
                                               model.name));
  std::vector<ChatMessage> messages;
  for (const auto& exchange : earlier) {
    messages.push_back({"user", exchange.question});
    messages.push_back({"assistant", exchange.answer});
  }
  messages.push_back({"user", message});
  if (options.on_note)
    options.on_note("nothing in memory has to do with this: the model's own words");
  auto state = model.model->start(1);
  auto out =
      said_by(decode::generate(model, model.chat->encode_chat(*model.tokenizer, messages, true),
                               state, generation_of(options)));
  for (const auto& exchange : earlier)
    out.provenance.insert(out.provenance.end(), exchange.provenance.begin(),
                          exchange.provenance.end());
  return out;
}

}  // namespace

std::int64_t Memory::move_old_turns(const std::string& session, const std::vector<Turn>& turns) {
  const auto& tokenizer = *reader().model().tokenizer;
  const auto exchanges = exchanges_after(turns, file_->moved_turns(session));
  const auto kept = exchanges.size() - latest(exchanges, tokenizer).size();
  if (kept == 0) return 0;
  std::string text;
  std::vector<std::int64_t> provenance;
  for (std::size_t i = 0; i < kept; ++i) {
    text += fmt::format("User: {}\nAssistant: {}\n\n", exchanges[i].question, exchanges[i].answer);
    provenance.insert(provenance.end(), exchanges[i].provenance.begin(),
                      exchanges[i].provenance.end());
  }
  std::sort(provenance.begin(), provenance.end());
  provenance.erase(std::unique(provenance.begin(), provenance.end()), provenance.end());
  const auto embedder = models_->embedder("");
  auto document = document_from_text(
      moved_label(session, exchanges.front().first, exchanges[kept - 1].last), std::move(text));
  const auto spans = cut_spans(document.text, document.media, [&](std::string_view piece) {
    return static_cast<std::int64_t>(tokenizer.encode(piece).size());
  });
  std::vector<Rep> reps;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    if (spans[i].kind != "passage") continue;
    const auto embedding =
        embedder->embed(std::string_view(document.text)
                            .substr(static_cast<std::size_t>(spans[i].begin),
                                    static_cast<std::size_t>(spans[i].end - spans[i].begin)));
    reps.push_back(memory::embedding_rep(static_cast<std::int64_t>(i), *embedder, embedding));
  }
  MemoryFile::PutOptions put;
  put.session = session;
  put.provenance = std::move(provenance);
  put.first_turn = exchanges.front().first;
  put.last_turn = exchanges[kept - 1].last;
  file_->put_document(document, spans, reps, put);
  return 2 * static_cast<std::int64_t>(kept);
}

ChatReply Memory::chat(const std::string& session, const std::string& message,
                       const ChatOptions& options) {
  const c10::InferenceMode inference;
  const auto started = std::chrono::steady_clock::now();
  if (message.find_first_not_of(" \t\r\n") == std::string::npos)
    throw Error(Errc::usage, "the message is empty");
  if (message.find('\0') != std::string::npos)
    throw Error(Errc::invalid, "the message holds a zero byte");
  MemoryFile::check_session_name(session);
  ChatReply out;
  auto& reader = this->reader();
  const auto turns = file_->turns(session);
  if (file_->writable() && !turns.empty()) {
    try {
      out.moved_to_memory = move_old_turns(session, turns);
    } catch (const Error& error) {
      // A full or busy disk is no reason not to answer: they are moved another time.
      if (error.code() != Errc::io && error.code() != Errc::busy && error.code() != Errc::full)
        throw;
      log::warn("earlier turns are not moved into the memory: {}", error.what());
    }
  }
  const auto since = exchanges_after(turns, file_->moved_turns(session));
  const auto recent = latest(since, *reader.model().tokenizer);

  const bool follow_up = !turns.empty() && is_follow_up(message, lexical());
  std::string query;
  if (follow_up) {
    for (auto i = turns.size() - std::min(turns.size(), kTurnsForRetrieval); i < turns.size(); ++i)
      query += turns[i].text + "\n";
  }
  // A reader learned to answer from passages, not from the turns before: these only find passages.
  const bool apart = !prompt_.refusal.empty();
  auto candidates = retrieve(query + message, kChatRetrieved, {}, true);
  // A word that points back may also stand in a message that begins something new.
  if (follow_up && apart)
    candidates = merged(std::move(candidates), retrieve(message, kChatRetrieved, {}, true));
  // What goes on from an answer from memory is answered from memory.
  const bool goes_on = follow_up && !turns.back().provenance.empty() && !candidates.empty();
  const bool from_memory = goes_on || search::relevance(candidates) >= prompt_.not_found_below;

  const auto labels = this->labels();
  // The first spans that fit; placed together they share the room.
  const auto place = [&](std::int64_t most, std::int64_t room) {
    std::vector<memory::PlacedSpan> spans;
    for (const auto& candidate : candidates) {
      if (static_cast<std::int64_t>(spans.size()) == most) break;
      const auto span = file_->find_span(candidate.id);
      if (!span || span->tokens + 16 > room) continue;
      if (!apart) room -= span->tokens + 16;
      spans.push_back({file_.get(), *span, labels.at(span->document), candidate.score});
    }
    return spans;
  };
  const bool unanswerable = !from_memory && is_question(message);
  std::optional<memory::SpanStates> states;
  Said said;
  if (from_memory) {
    states.emplace(*file_, reader);
    const auto room = reader.room(message, options.max_tokens);
    const auto spans =
        apart ? place(prompt_.spans_apart, room) : place(kChatSpans, room - kTurnTokens);
    said =
        apart ? reply_apart(reader, *states, spans, search::relevance(candidates), message, options)
              : reply_together(reader, *states, spans, recent, message, options);
    if (spans.empty())
      said.note = "no passage fits the model's context beside the message and the earlier turns";
  } else if (unanswerable) {
    said.text = memory::kNotFound;
    said.note = "nothing in memory has to do with this question";
    if (options.on_text) options.on_text(said.text);
  } else {
    // What is not read from memory is said by the model as it came: a reader learned short answers from passages.
    said = reply_freely(*models_->base_language_model(model_name()), recent, message, options);
  }
  out.from_memory = from_memory || unanswerable;
  out.text = std::move(said.text);
  out.tokens = said.tokens;
  out.cut = said.stop_reason == "length";
  out.note = std::move(said.note);
  if (said.stop_reason == "context") out.note = "the reply ends early: the model's context is full";
  if (said.stop_reason == "interrupted") out.note = "the reply was interrupted here";
  out.citations = std::move(said.citations);
  auto& provenance = said.provenance;
  std::sort(provenance.begin(), provenance.end());
  provenance.erase(std::unique(provenance.begin(), provenance.end()), provenance.end());
  // Both turns together: a question without its answer would stand in the way of the next.
  if (file_->writable() && (said.stop_reason != "interrupted" || !out.text.empty())) {
    const Turn both[] = {{0, "user", message, {}, {}, memory::unix_seconds()},
                         {0, "assistant", out.text, {}, provenance, memory::unix_seconds()}};
    try {
      file_->append_turns(session, both);
    } catch (const Error&
                 failure) {  // the reply was given: whoever asked decides what a full disk means
      out.turns_obstacle = failure.what();
    }
  }
  if (states) states->store();
  out.seconds = seconds_since(started);
  return out;
}

Memory::Continuation Memory::continue_text(std::int64_t max_tokens, const Chain& sampler,
                                           std::uint64_t seed, const std::string& source,
                                           const std::function<bool(std::string_view)>& on_text,
                                           const std::string& kv) {
  const c10::InferenceMode inference;
  const auto started = std::chrono::steady_clock::now();
  // Text goes on in the words of the model as it came, whatever adapter answers questions.
  const auto base = models_->base_language_model(model_name());
  std::optional<Reader> plain;
  if (adapter_ != kNoAdapter) plain.emplace(base, prompt_, parse_chain(kv_spec_));
  auto& reader = plain ? *plain : this->reader();
  std::optional<DocumentInfo> document;
  if (source.empty()) {
    for (auto& info : file_->documents()) {
      if (info.session.empty()) document = std::move(info);
    }
    if (!document)
      throw Error(Errc::not_found, fmt::format("{} holds no source to continue: read one first",
                                               file_->path().string()));
  } else {
    document = file_->find_document(source);
    if (!document)
      throw Error(Errc::not_found, fmt::format("{} holds no source '{}': see `mneme show`",
                                               file_->path().string(), source));
  }
  std::vector<Span> passages;
  for (auto& span : file_->spans(document->document.id)) {
    if (span.kind == "passage") passages.push_back(std::move(span));
  }
  if (passages.empty())
    throw Error(Errc::not_found,
                fmt::format("the source '{}' holds no text to continue", document->document.label));
  Continuation out;
  const auto& model = reader.model();
  auto state = model.model->start(1);
  if (!kv.empty()) use_plan(state, kv_plan(kv, model));
  const auto context = model.model->shape().context;
  const bool all = !kv.empty() && any_length(state, context);
  // The end of the text is read as it stands, without the prompt that questions want: behind that prompt the model would
  // write more questions. Its states are kept under the text that came before them; the last passage is run, so that the
  // text goes on from it. Under a KV spec, what is kept of a passage depends on all before it: nothing is kept in the file.
  const auto last = passages.size() - 1;
  auto first = last;
  auto room = (context > 0 && !all ? context - std::min(max_tokens, context / 2)
                                   : std::numeric_limits<std::int64_t>::max()) -
              passages[last].tokens;
  while (first > 0 && (!kv.empty() || last - first < kContinueSpans) &&
         passages[first - 1].tokens + 16 <= room)
    room -= passages[--first].tokens + 16;
  const auto text =
      file_->document_text(document->document.id, passages[first].begin, passages[last].end);
  const auto offset = [&](std::int64_t byte) {
    return static_cast<std::size_t>(byte - passages[first].begin);
  };
  memory::SpanStates states(*file_, reader);
  states.consolidate_when_full();
  std::vector<Rep> computed;
  for (auto i = kv.empty() ? first : last; i < last; ++i) {
    const auto begins = offset(passages[i].begin);
    const auto ids =
        model.tokenizer->encode(text.substr(begins, offset(passages[i + 1].begin) - begins));
    const RepKey key{passages[i].id, RepKind::kv,
                     model.digest,   -1,
                     reader.codec(), sha256_hex("plain text\n" + text.substr(0, begins))};
    const auto n = static_cast<std::int64_t>(ids.size());
    if (const auto held = file_->get_any_codec(key); held && held->n_vec == n) {
      reader.place(state, reader.decode(held->blob, held->n_vec, held->key.codec));
    } else {
      auto scratch = state.fork();
      Rep rep;
      rep.key = key;
      rep.n_vec = n;
      rep.blob = reader.run_and_encode(scratch, ids);
      rep.d = static_cast<std::int64_t>(rep.blob.size()) / std::max<std::int64_t>(1, n);
      reader.place(state, reader.decode(rep.blob, n, key.codec));  // as it will read back
      out.document_tokens_evaluated += n;
      computed.push_back(std::move(rep));
    }
    out.tokens_placed += n;
  }
  for (std::size_t i = 0; i < first; ++i) out.tokens_left_out += passages[i].tokens;
  const auto prompt =
      model.tokenizer->encode(text.substr(kv.empty() ? offset(passages[last].begin) : 0));
  GenerateOptions generation;
  generation.max_tokens = max_tokens;
  generation.sampler = sampler;
  generation.seed = seed;
  generation.on_text = on_text;
  const auto said = decode::generate(reader.model(), prompt, state, generation);
  out.text = said.text;
  out.stop_reason = said.stop_reason;
  out.generated_tokens = static_cast<std::int64_t>(said.ids.size());
  out.document_tokens_evaluated += said.prompt_tokens;
  file_->put(computed, Admission::for_question);
  out.seconds = seconds_since(started);
  return out;
}

}  // namespace mneme
