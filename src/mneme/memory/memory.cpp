#include "mneme/memory/memory.h"

#include "mneme/core/error.h"
#include "mneme/core/generator.h"
#include "mneme/core/log.h"
#include "mneme/memory/clock.h"
#include "mneme/memory/embedding_rep.h"
#include "mneme/memory/span_states.h"
#include "mneme/models/locate.h"
#include "mneme/search/lexical_index.h"
#include "mneme/weights/digests.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fmt/format.h>
#include <map>
#include <numeric>
#include <set>

namespace mneme {
namespace {

using memory::seconds_since;

constexpr const char* kDefaultLanguageModel = "smollm2";
constexpr const char* kDefaultEmbedder = "minilm";
constexpr const char* kDefaultKv = "quantize(bits=8)";
// Passages that are embedded in one go: enough to sort by length, few enough to show progress.
constexpr std::size_t kEmbedBatch = 128;
// States that are computed in one go and stored in one transaction.
constexpr std::size_t kStateBatch = 16;
// Entries before a span that a streamed context carries over when positions start over.
constexpr std::int64_t kStreamWindow = 1024;

std::vector<Span> passages_of(const std::vector<Span>& spans) {
  std::vector<Span> out;
  std::copy_if(spans.begin(), spans.end(), std::back_inserter(out),
               [](const Span& span) { return span.kind == "passage"; });
  return out;
}

/// KV specs separated by ';', each as programs know it. Throws Error(usage) for one that stored states cannot be made
/// smaller by.
std::string canonical_steps(std::string_view specs) {
  std::string out;
  for (const auto& chain : parse_chains(specs)) {
    Reader::check_consolidation(chain);
    out += (out.empty() ? "" : "; ") + print(KvPlan(chain).chain());
  }
  return out;
}

/// A path that holds anywhere: a memory, which keeps names and such paths, may be opened from another folder.
std::string anywhere(const std::string& path) {
  return std::filesystem::absolute(path).lexically_normal().string();
}

/// Writes into a new memory which models and which way of reading it is of, and refuses others for one that has been read
/// into.
void bind(MemoryFile& file, const LanguageModel& model, const SentenceEncoder& embedder,
          ContextMode context) {
  const std::string name = context == ContextMode::span ? "span" : "stream";
  const auto digest = file.meta("model_digest");
  if (!digest) {
    const std::pair<std::string, std::string> entries[] = {
        {"model", model.name == "smollm2" ? model.name : anywhere(model.path)},
        {"model_digest", model.digest},
        {"embedder", embedder.name() == "minilm" ? embedder.name() : anywhere(embedder.path())},
        {"embedder_digest", embedder.digest()},
        {"context", name}};
    file.set_meta(entries);
  }
  if (file.meta("context").value_or("span") != name) {
    throw Error(
        Errc::usage,
        fmt::format("{} was made with --context {}: reading into it otherwise wants a new memory",
                    file.path().string(), name == "span" ? "stream" : "span"));
  }
  const auto embedder_digest = file.meta("embedder_digest");
  if (embedder_digest && *embedder_digest != embedder.digest()) {
    throw Error(Errc::mismatch,
                fmt::format("{} was made with the embedder '{}': give that one with --embedder",
                            file.path().string(), file.meta("embedder").value_or("")));
  }
}

/// How a model with this adapter is asked.
Prompt prompt_of(const std::string& adapter) {
  if (adapter == kNoAdapter) return Prompt::few_shot_quotes();
  const auto path = locate_adapter(adapter);
  const auto info = read_adapter_info(path);
  const auto prompt = info.notes.find("prompt");
  if (prompt == info.notes.end()) return Prompt::few_shot_quotes();
  try {
    return Prompt::from_json(prompt->second);
  } catch (const Error&) {
    throw Error(
        Errc::corrupt,
        fmt::format("{}: the prompt that the adapter was trained with is damaged", path.string()));
  }
}

}  // namespace

// ---- models ----

MemoryModels::MemoryModels(std::string language_model, std::string embedder, std::string adapter,
                           Compute compute)
    : language_model_name_(std::move(language_model)),
      embedder_name_(std::move(embedder)),
      compute_(compute) {
  if (adapter.empty()) return;
  std::error_code ignored;
  const auto known = known_adapters();
  const bool named =
      adapter == kNoAdapter || std::find(known.begin(), known.end(), adapter) != known.end();
  adapter_ =
      named || !std::filesystem::exists(adapter, ignored) ? std::move(adapter) : anywhere(adapter);
}

const std::string& MemoryModels::adapter(const std::optional<std::string>& model,
                                         const std::string& otherwise) {
  if (!adapter_) {
    const auto& name = language_model_name_;
    if (model && (name.empty() || same_model(name, *model))) {
      adapter_ = otherwise.empty() ? kNoAdapter : otherwise;
    } else {
      adapter_ = default_adapter(name.empty() ? kDefaultLanguageModel : name);
    }
  }
  return *adapter_;
}

std::shared_ptr<const LanguageModel> MemoryModels::language_model(const std::string& otherwise) {
  if (!language_model_) language_model_ = load(otherwise, adapter(std::nullopt, ""));
  return language_model_;
}

std::shared_ptr<const LanguageModel> MemoryModels::base_language_model(
    const std::string& otherwise) {
  if (adapter(std::nullopt, "") == kNoAdapter) return language_model(otherwise);
  if (!base_) base_ = load(otherwise, kNoAdapter);
  return base_;
}

std::shared_ptr<const LanguageModel> MemoryModels::load(const std::string& otherwise,
                                                        const std::string& adapter) {
  if (language_model_name_.empty())
    language_model_name_ = otherwise.empty() ? kDefaultLanguageModel : otherwise;
  return load_language_model(language_model_name_, {compute_, adapter});
}

std::shared_ptr<const SentenceEncoder> MemoryModels::embedder(const std::string& otherwise) {
  if (!embedder_) {
    if (embedder_name_.empty()) embedder_name_ = otherwise.empty() ? kDefaultEmbedder : otherwise;
    embedder_ = SentenceEncoder::load(embedder_name_, compute_);
  }
  return embedder_;
}

// ---- opening ----

struct Memory::Index {
  std::int64_t generation = -1;
  std::string embedder_digest;
  DenseIndex dense{1};
  std::unique_ptr<LexicalIndex> lexical;
  std::vector<DocumentInfo> documents;  // counting their spans takes longer than a search
};

Memory::~Memory() = default;

std::unique_ptr<Memory> Memory::open(const std::filesystem::path& path,
                                     std::shared_ptr<MemoryModels> models,
                                     const MemoryOptions& options) {
  auto out = std::unique_ptr<Memory>(new Memory);
  out->models_ = std::move(models);
  out->strict_ = options.strict;
  MemoryFile::Options file_options;
  file_options.budget_bytes = options.budget_bytes;
  if (!options.kv.empty())
    Reader::check_kv(parse_chain(options.kv));  // a bad spec is refused before a file is made
  const auto consolidate = canonical_steps(
      options.consolidate.empty() ? memory::SpanStates::kConsolidate : options.consolidate);
  out->file_ = MemoryFile::open(path, options.access, file_options);
  auto& file = *out->file_;
  const auto prompt = file.meta("prompt");
  const auto of_file = file.meta("adapter").value_or(kNoAdapter);
  out->adapter_ =
      out->models_->adapter(prompt ? std::optional(out->model_name()) : std::nullopt, of_file);
  if (prompt) {
    if (file.meta("prompt_digest") != sha256_hex(*prompt)) {
      throw Error(
          Errc::corrupt,
          fmt::format("{}: its prompt is not the one that it was made with: the file is damaged",
                      path.string()));
    }
    // Another adapter than the file's wants another prompt; the states behind that are kept beside the file's own.
    out->prompt_ = out->adapter_ == of_file ? Prompt::from_json(*prompt) : prompt_of(out->adapter_);
    out->kv_spec_ = file.meta("kv").value_or(kDefaultKv);
    if (!options.kv.empty() && print(KvPlan(parse_chain(options.kv)).chain()) != out->kv_spec_) {
      throw Error(Errc::usage,
                  fmt::format("{} keeps its states as '{}': another --kv wants a new memory",
                              path.string(), spelled_out(out->kv_spec_)));
    }
    if (!options.consolidate.empty() && consolidate != out->consolidate()) {
      throw Error(Errc::usage,
                  fmt::format("{} makes states smaller by '{}': another --consolidate wants a new "
                              "memory",
                              path.string(), out->consolidate()));
    }
  } else {
    out->prompt_ = prompt_of(out->adapter_);
    out->kv_spec_ =
        print(KvPlan(parse_chain(options.kv.empty() ? kDefaultKv : options.kv)).chain());
    if (file.writable() && options.access != MemoryFile::Access::read_only) {
      const auto json = out->prompt_.to_json();
      const std::pair<std::string, std::string> entries[] = {{"prompt", json},
                                                             {"prompt_digest", sha256_hex(json)},
                                                             {"adapter", out->adapter_},
                                                             {"kv", out->kv_spec_},
                                                             {"consolidate", consolidate}};
      file.set_meta(entries);
    }
  }
  return out;
}

std::string Memory::model_name() const {
  return file_->meta("model").value_or(kDefaultLanguageModel);
}
std::string Memory::kv() const { return kv_spec_; }
StoreReport Memory::set_budget(std::int64_t bytes) {
  if (file_->usage().spans_with_states > 0)
    memory::SpanStates(*file_, reader()).consolidate_when_full();
  return file_->set_budget(bytes);
}
std::string Memory::consolidate() const {
  return file_->meta("consolidate").value_or(std::string(memory::SpanStates::kConsolidate));
}

Reader& Memory::reader() {
  if (!reader_) {
    const auto model = models_->language_model(file_->meta("model").value_or(""));
    const auto digest = file_->meta("model_digest");
    if (digest && *digest != model->digest) {
      const auto with = [](const std::string& name, const std::string& adapter) {
        return adapter == kNoAdapter ? fmt::format("'{}'", name)
                                     : fmt::format("'{}' with the adapter '{}'", name, adapter);
      };
      const auto message =
          fmt::format("{} was read with the model {}, not with this {}", file_->path().string(),
                      with(model_name(), file_->meta("adapter").value_or(kNoAdapter)),
                      with(model->name, adapter_));
      if (strict_)
        throw Error(Errc::mismatch, message + ": give its own model, or leave out --strict");
      log::warn("{}: its stored states are not used, spans are read again where needed", message);
    }
    reader_ = std::make_shared<Reader>(model, prompt_, parse_chain(kv_spec_));
  }
  return *reader_;
}

// ---- search ----

Memory::Index& Memory::index() {
  const auto generation = file_->generation();
  const auto embedder = models_->embedder(file_->meta("embedder").value_or(""));
  if (index_ && index_->generation == generation && index_->embedder_digest == embedder->digest())
    return *index_;
  auto fresh = std::make_unique<Index>();
  fresh->generation = generation;
  fresh->embedder_digest = embedder->digest();
  const auto d = embedder->width();
  std::vector<std::int64_t> ids;
  std::vector<float> vectors;
  file_->for_each_rep(RepKind::embedding, embedder->digest(), [&](const Rep& rep) {
    if (rep.d != d || rep.n_vec != 1 || static_cast<std::int64_t>(rep.blob.size()) != d * 4) return;
    ids.push_back(rep.key.span);
    const auto first = vectors.size();
    vectors.resize(first + static_cast<std::size_t>(d));
    std::memcpy(vectors.data() + first, rep.blob.data(), rep.blob.size());
  });
  // Links of a graph are kept in the file: building them again takes minutes, and a graph that does not fit is no error.
  const auto kept = file_->find_index("dense");
  const bool usable =
      kept && kept->generation == generation && kept->model_digest == embedder->digest();
  try {
    const auto graph = usable ? file_->get_index("dense") : std::nullopt;
    fresh->dense = DenseIndex::restore(d, {}, ids, vectors, graph.value_or(""));
  } catch (const Error& error) {
    if (!usable) throw;
    log::info("the stored search graph is not used: {}", error.what());
    fresh->dense = DenseIndex::restore(d, {}, ids, vectors, "");
  }
  fresh->lexical = std::make_unique<LexicalIndex>(file_->handle(), MemoryFile::kFtsTable);
  if (const auto missing = fresh->lexical->size() - static_cast<std::int64_t>(ids.size());
      missing > 0) {
    log::warn(
        "{}: {} of {} passages have no embedding yet and are found by their words only: the same "
        "`read` goes on with them",
        file_->path().string(), missing, fresh->lexical->size());
  }
  fresh->documents = file_->documents();
  index_ = std::move(fresh);
  return *index_;
}

const LexicalIndex& Memory::lexical() { return *index().lexical; }

void Memory::store_index() {
  auto& current = index();
  if (!current.dense.build_graph()) return;  // small, or linked already
  const auto graph = current.dense.graph();
  file_->put_index({"dense", current.dense.kind(), current.embedder_digest, current.generation, 0},
                   graph);
}

std::vector<Candidate> Memory::retrieve(const std::string& query, std::int64_t limit,
                                        const std::vector<std::string>& sources, bool session_too) {
  if (query.find_first_not_of(" \t\r\n") == std::string::npos)
    throw Error(Errc::usage, "there is nothing to look for: the question or query is empty");
  auto& current = index();
  const auto embedding = models_->embedder("")->embed(query);
  const HybridSearch search(current.dense, *current.lexical);
  std::optional<std::vector<std::int64_t>> within;
  const auto& documents = current.documents;
  const bool has_sessions = std::any_of(documents.begin(), documents.end(),
                                        [](const auto& d) { return !d.session.empty(); });
  if (!sources.empty() || (has_sessions && !session_too)) {
    std::set<std::int64_t> wanted;
    for (const auto& source : sources) {
      const auto found = std::find_if(documents.begin(), documents.end(),
                                      [&](const auto& d) { return d.document.label == source; });
      if (found == documents.end())
        throw Error(Errc::not_found, fmt::format("{} holds no source '{}': see `mneme show`",
                                                 file_->path().string(), source));
      wanted.insert(found->document.id);
    }
    if (sources.empty()) {
      for (const auto& d : documents) {
        if (d.session.empty()) wanted.insert(d.document.id);
      }
    }
    within.emplace();
    file_->for_each_passage([&](const Span& span) {
      if (wanted.contains(span.document)) within->push_back(span.id);
    });
  }
  // Fewer vectors of this embedder than passages: made with another one. Words still find what vectors cannot.
  const auto vector = current.dense.size() > 0 ? std::span<const float>(embedding.vector)
                                               : std::span<const float>{};
  return search.search(vector, query, limit, within ? &*within : nullptr);
}

std::vector<CandidateReport> Memory::search(const std::string& query, std::int64_t limit,
                                            const std::vector<std::string>& sources) {
  std::vector<CandidateReport> out;
  const auto labels = this->labels();
  for (const auto& candidate : retrieve(query, limit, sources, false)) {
    const auto span = file_->find_span(candidate.id);
    if (!span) continue;
    const auto text = file_->span_text(candidate.id);
    CandidateReport report;
    report.candidate = candidate;
    report.source = labels.at(span->document);
    report.excerpt = excerpt(text, 0, static_cast<std::int64_t>(text.size()), 160);
    report.file = file_->path().string();
    report.begin = span->begin;
    report.end = span->end;
    out.push_back(std::move(report));
  }
  return out;
}

const std::vector<DocumentInfo>& Memory::documents() { return index().documents; }

std::map<std::int64_t, std::string> Memory::labels() {
  std::map<std::int64_t, std::string> out;
  for (const auto& info : documents()) out[info.document.id] = info.document.label;
  return out;
}

// ---- reading ----

ReadReport Memory::read(std::vector<Document> documents, const ReadOptions& options) {
  const auto started = std::chrono::steady_clock::now();
  ReadReport report;
  std::vector<std::string> names;
  for (const auto& document : documents) names.push_back(document.label);
  check_labels(names);
  const auto model = models_->language_model(file_->meta("model").value_or(""));
  const auto embedder = models_->embedder(file_->meta("embedder").value_or(""));
  const auto cancelled = [&] { return options.cancelled && options.cancelled(); };
  const auto progress = [&](std::string_view what, std::int64_t done, std::int64_t total) {
    if (options.progress) options.progress(what, done, total);
  };
  file_->claim_writer();
  bind(*file_, *model, *embedder, options.context);
  // The document's tokens are counted as the model sees them; a passage never outgrows what fits behind the prefix.
  const CountTokens count = [&](std::string_view text) {
    return static_cast<std::int64_t>(model->tokenizer->encode(text).size());
  };
  std::int64_t truncated = 0, total_bytes = 0;
  for (const auto& document : documents)
    total_bytes += static_cast<std::int64_t>(document.text.size());
  progress("indexing", 0, total_bytes);
  file_->sync_states(true);
  for (std::size_t i = 0; i < documents.size() && !report.interrupted; ++i) {
    if (cancelled()) {
      report.interrupted = true;
      break;
    }
    auto& document = documents[i];
    SourceReport source{document.label, 0, 0, static_cast<std::int64_t>(document.text.size()), 0,
                        "added"};
    const auto existing = file_->find_document(document.label);
    const bool unchanged = existing && existing->document.content_hash == document.content_hash;
    std::vector<Span> unread;  // passages without an embedding
    if (unchanged) {
      source.outcome = "unchanged";
      source.tokens = existing->tokens;
      source.spans = existing->spans;
      source.with_states = existing->with_states;
      unread =
          file_->passages_without(existing->document.id, RepKind::embedding, embedder->digest());
      if (unread.empty()) {
        progress("indexing", source.bytes, total_bytes);
        report.sources.push_back(std::move(source));
        continue;
      }
      source.outcome = "resumed";
    }
    std::vector<Span> spans;
    if (!unchanged) {
      if (const auto lost = model->tokenizer->lost_bytes(document.text); lost > 0) {
        log::warn(
            "{}: {} no token in this model's vocabulary: kept and cited, but the model does not "
            "see it",
            document.label, lost == 1 ? "1 byte has" : fmt::format("{} bytes have", lost));
      }
      spans = cut_spans(document.text, document.media, count);
      unread = passages_of(spans);
      for (const auto& span : unread) source.tokens += span.tokens;
      source.spans = static_cast<std::int64_t>(unread.size());
    }
    // The text goes into the file with its first embeddings and the others follow batch by batch, so that a small
    // document is one write and of a large one nothing is lost to an interruption.
    const auto embed = [&](std::span<const Span> some, const auto& span_of) {
      std::vector<std::string_view> texts;
      for (const auto& span : some)
        texts.push_back(std::string_view(document.text)
                            .substr(static_cast<std::size_t>(span.begin),
                                    static_cast<std::size_t>(span.end - span.begin)));
      std::vector<Rep> reps;
      const auto embeddings = embedder->embed(texts);
      for (std::size_t j = 0; j < some.size(); ++j) {
        truncated += embeddings[j].truncated;
        reps.push_back(memory::embedding_rep(span_of(some[j]), *embedder, embeddings[j]));
      }
      return reps;
    };
    std::int64_t reached = 0;  // byte up to which the progress has been told
    const auto advance = [&](std::size_t done) {
      const auto byte = done < unread.size() ? unread[done].begin
                                             : source.bytes;  // bytes between passages included
      progress("indexing", byte - reached, total_bytes);
      reached = byte;
    };
    std::size_t done = 0;
    if (!unchanged) {
      done = std::min(kEmbedBatch, unread.size());
      const auto reps =
          embed(std::span(unread).first(done), [](const Span& span) { return span.order; });
      const auto put = file_->put_document(document, spans, reps);
      source.outcome = put.outcome == PutResult::Outcome::replaced    ? "replaced"
                       : put.outcome == PutResult::Outcome::unchanged ? "unchanged"
                                                                      : "added";
      for (auto& span : unread) span.id = put.spans.at(static_cast<std::size_t>(span.order));
      advance(done);
    }
    while (done < unread.size()) {
      if (cancelled()) {
        report.interrupted = true;
        source.outcome = "interrupted";
        break;
      }
      const auto n = std::min(kEmbedBatch, unread.size() - done);
      const auto stored = file_->put(
          embed(std::span(unread).subspan(done, n), [](const Span& span) { return span.id; }),
          Admission::ahead);
      if (stored.not_stored > 0) throw Error(Errc::io, stored.reason);
      done += n;
      advance(done);
    }
    for (const auto& span : std::span(unread).first(done)) report.tokens_read += span.tokens;
    document.text = {};  // stored: a folder of books need not stay in memory
    report.sources.push_back(std::move(source));
  }
  if (truncated > 0)
    log::warn(
        "{} passages are longer than the embedder reads: they are found by their first {} tokens",
        truncated, embedder->max_tokens());
  if (!report.interrupted) {
    file_->sync_states(options.sync);
    if (options.eager || options.context == ContextMode::stream) compute_states(report, options);
    store_index();
    for (auto& source : report.sources) {
      if (const auto info = file_->find_document(source.name))
        source.with_states = info->with_states;
    }
  }
  report.usage = file_->usage();
  report.seconds = seconds_since(started);
  return report;
}

void Memory::compute_states(ReadReport& report, const ReadOptions& options) {
  auto& reader = this->reader();
  memory::SpanStates states(*file_, reader);
  states.consolidate_when_full();
  const bool stream = options.context == ContextMode::stream;
  std::vector<std::string> labels;
  for (const auto& source : report.sources) labels.push_back(source.name);
  std::int64_t total = 0;
  std::vector<std::pair<std::int64_t, std::vector<Span>>>
      work;  // document, its passages that lack states
  for (const auto& label : labels) {
    const auto info = file_->find_document(label);
    if (!info) continue;
    auto passages = passages_of(file_->spans(info->document.id));
    const bool all_there = std::all_of(passages.begin(), passages.end(),
                                       [&](const Span& s) { return states.has(s.id); });
    if (all_there) continue;
    // A stream is one pass: what comes later saw what came before, so it starts from the top.
    if (!stream) std::erase_if(passages, [&](const Span& s) { return states.has(s.id); });
    for (const auto& span : passages) total += span.tokens;
    work.emplace_back(info->document.id, std::move(passages));
  }
  if (options.progress && !work.empty()) options.progress("reading", 0, total);
  for (const auto& [document, passages] : work) {
    std::optional<Reader::Stream> streaming;
    if (stream) streaming.emplace(reader, kStreamWindow);
    for (std::size_t first = 0; first < passages.size(); first += kStateBatch) {
      if (options.cancelled && options.cancelled()) {
        report.interrupted = true;
        return;
      }
      const auto n = std::min(kStateBatch, passages.size() - first);
      std::vector<std::vector<std::int32_t>> ids;
      std::int64_t tokens = 0;
      for (std::size_t i = first; i < first + n; ++i) {
        ids.push_back(reader.span_ids(file_->span_text(passages[i].id)));
        tokens += passages[i].tokens;
      }
      std::vector<std::string> blobs;
      if (streaming) {
        for (const auto& row : ids) blobs.push_back(streaming->next(row));
      } else {
        blobs = reader.compute(ids);
      }
      std::vector<Rep> reps;
      for (std::size_t i = 0; i < n; ++i)
        reps.push_back(memory::SpanStates::rep(states.key(passages[first + i].id),
                                               static_cast<std::int64_t>(ids[i].size()),
                                               std::move(blobs[i])));
      const auto stored = file_->put(reps, Admission::ahead);
      report.states_computed += static_cast<std::int64_t>(n);
      report.states_stored += stored.stored;
      if (options.progress) options.progress("reading", tokens, total);
      if (stored.obstacle == StoreReport::Obstacle::disk) throw Error(Errc::io, stored.reason);
      if (stored.not_stored > 0) {
        report.obstacle = stored.reason;
        // A full budget takes nothing more that nobody asked for: going on would only burn time.
        if (stored.obstacle != StoreReport::Obstacle::busy) return;
      }
    }
  }
}

VerifyReport Memory::verify(std::int64_t deep, std::uint64_t seed) {
  auto report = file_->verify();
  if (deep <= 0 || !report.ok()) return report;
  if (file_->meta("context").value_or("span") == "stream") {
    throw Error(Errc::unsupported,
                fmt::format("{} is sound; its states were computed in one stream, each from all "
                            "text before it, and cannot be compared span by span: leave out --deep",
                            file_->path().string()));
  }
  auto& reader = this->reader();
  memory::SpanStates states(*file_, reader);
  std::vector<Span> held;
  file_->for_each_passage([&](const Span& span) {
    if (states.has(span.id)) held.push_back(span);
  });
  Generator generator(seed);
  for (std::int64_t i = 0; i < deep && !held.empty(); ++i) {
    const auto pick =
        static_cast<std::size_t>(generator.uniform() * static_cast<double>(held.size()));
    std::swap(held[pick], held.back());
    const auto span = held.back();
    held.pop_back();
    ++report.compared;
    if (const auto problem = states.compare(span.id); !problem.empty())
      report.problems.push_back(problem);
  }
  return report;
}

}  // namespace mneme
