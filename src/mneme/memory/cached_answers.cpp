#include "mneme/memory/cached_answers.h"

#include "mneme/core/bytes.h"
#include "mneme/memory/choice.h"
#include "mneme/memory/clock.h"
#include "mneme/models/locate.h"
#include "mneme/text/white_space.h"
#include "mneme/weights/checkpoint.h"
#include "mneme/weights/digests.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

namespace mneme {
namespace {

using memory::seconds_since;

// What the bytes of an entry are; another layout gets another name.
constexpr const char* kLayout = "cached_answer";
constexpr const char* kPrompts = "cached_answer_prompts";
// An excerpt has a few hundred characters, an answer as many tokens as were asked for.
constexpr std::size_t kMaxCitations = 1024;

/// The digest that a model gets when it is loaded with this adapter, without loading it.
std::string digest_of(const std::string& model, const std::string& adapter) {
  const auto digest = open_checkpoint(locate_model(model).path)->digest();
  return adapter == kNoAdapter ? digest
                               : sha256_hex(digest + "\n" + file_digest(locate_adapter(adapter)));
}

/// A digest of texts that cannot run into each other.
class Digest {
 public:
  Digest& add(std::string_view text) {
    sha_.update(std::to_string(text.size()) + ":").update(text);
    return *this;
  }
  Digest& add(std::int64_t number) { return add(std::to_string(number)); }
  [[nodiscard]] std::string hex() const { return sha_.hex(); }

 private:
  Sha256 sha_;
};

std::string settings_of(const AskOptions& options, Memory& memory) {
  auto sources = options.sources;
  std::sort(sources.begin(), sources.end());
  Digest out;
  out.add(options.placement == Placement::each ? "each" : "together")
      .add(options.top)
      .add(options.max_tokens)
      .add(std::int64_t{options.always})
      .add(memory.prompt().to_json())
      .add(memory.kv())
      .add(memory.file().meta("context").value_or("span"));
  for (const auto& source : sources) out.add(source);
  return out.hex();
}

bool is_text(std::string_view text) { return find_invalid_utf8(text) < 0; }

}  // namespace

CachedAnswers::CachedAnswers(Memory& memory, std::shared_ptr<const SentenceEncoder> embedder,
                             const AskOptions& options, std::shared_ptr<const ReusePolicy> policy,
                             std::uint64_t seed)
    : memory_(memory),
      embedder_(std::move(embedder)),
      options_(options),
      policy_(std::move(policy)),
      seed_(seed),
      model_digest_(digest_of(memory.models().language_model_name().empty()
                                  ? memory.model_name()
                                  : memory.models().language_model_name(),
                              memory.adapter())),
      settings_digest_(settings_of(options, memory)) {
  // What is said or refused of another model than the file's is the reader's to say.
  if (const auto own = memory.file().meta("model_digest"); own && *own != model_digest_)
    memory.reader();
  load();
}

void CachedAnswers::load() {
  auto& file = memory_.file();
  generation_ = file.generation();
  cache_.emplace(policy_, embedder_->width(), seed_, file.counter(kPrompts));
  documents_.clear();
  kept_.clear();
  stale_.clear();
  tokens_ = 0;
  Digest documents;
  documents.add(embedder_->digest()).add(file.usage().unembedded_spans);
  for (const auto& info : file.documents()) {
    if (!info.session.empty()) continue;  // never read for an answer
    documents_.emplace(info.document.label, info.document.id);
    tokens_ += info.tokens;
    documents.add(info.document.label).add(info.document.content_hash);
  }
  documents_digest_ = documents.hex();
  std::vector<std::pair<ResponseCache::Entry, Kept>> read_back;
  file.for_each_rep(RepKind::text, model_digest_, [&](const Rep& rep) {
    if (rep.key.codec != kLayout) return;
    ResponseCache::Entry entry;
    std::optional<Kept> kept;
    try {
      ByteReader bytes(rep.blob);
      if (bytes.string() != documents_digest_) {
        stale_.push_back(rep.key);
        return;
      }
      if (rep.key.prefix_digest != settings_digest_) return;
      kept = read(rep, entry);
    } catch (const Error& error) {
      if (error.code() != Errc::corrupt) throw;
    }
    if (kept) {
      read_back.emplace_back(std::move(entry), std::move(*kept));
    } else {
      stale_.push_back(rep.key);
    }
  });
  // In the order that they came to be, which decides among equally near ones.
  std::stable_sort(read_back.begin(), read_back.end(),
                   [](const auto& a, const auto& b) { return a.first.id < b.first.id; });
  for (auto& [entry, kept] : read_back) {
    // Of two entries with one number, which two processes wrote at once, one goes, too.
    if (cache_->restore(entry)) {
      kept_.emplace(entry.id, std::move(kept));
    } else {
      stale_.push_back(kept.key);
    }
  }
  for (const auto id : cache_->shrink()) {
    stale_.push_back(kept_.at(id).key);
    kept_.erase(id);
  }
}

Rep CachedAnswers::write(std::int64_t id) const {
  const auto& entry = *cache_->find(id);
  const auto& kept = kept_.at(id);
  Rep rep;
  rep.key = kept.key;
  rep.provenance = kept.provenance;
  rep.n_vec = 1;
  rep.d = static_cast<std::int64_t>(entry.embedding.size());
  ByteWriter out(&rep.blob);
  out.string(documents_digest_);
  out.value(static_cast<std::uint64_t>(entry.embedding.size()));
  out.raw(entry.embedding.data(), entry.embedding.size() * sizeof(float));
  out.string(entry.response);
  out.value(entry.last_use);
  out.value(static_cast<std::uint64_t>(entry.observations.size()));
  for (const auto& o : entry.observations) {
    out.value(o.similarity);
    out.value(static_cast<std::uint8_t>(o.right));
  }
  const auto& answer = kept.answer;
  for (const bool flag : {answer.found, answer.quotation, answer.cut})
    out.value(static_cast<std::uint8_t>(flag));
  out.value(answer.relevance);
  out.value(answer.confidence);
  out.value(static_cast<std::uint64_t>(answer.citations.size()));
  for (const auto& c : answer.citations) {
    out.string(c.source);
    out.string(c.excerpt);
    for (const auto number : {c.start, c.end, c.line, c.excerpt_line}) out.value(number);
    out.value(c.score);
    out.value(static_cast<std::uint8_t>(c.holds_answer));
  }
  return rep;
}

// The bytes are of a file that may be hostile: what cannot be is no entry.
std::optional<CachedAnswers::Kept> CachedAnswers::read(const Rep& rep,
                                                       ResponseCache::Entry& entry) const {
  ByteReader in(rep.blob);
  in.string();  // the documents' digest
  entry.id = rep.key.layer;
  entry.embedding.resize(in.count(sizeof(float)));
  for (auto& x : entry.embedding) x = in.value<float>();
  entry.response = in.string();
  entry.last_use = in.value<std::int64_t>();
  entry.observations.resize(in.count(sizeof(double) + 1));
  for (auto& o : entry.observations) {
    o.similarity = in.value<double>();
    o.right = in.value<std::uint8_t>() != 0;
  }
  Kept kept{rep.key, rep.provenance, {}};
  auto& answer = kept.answer;
  for (bool* flag : {&answer.found, &answer.quotation, &answer.cut})
    *flag = in.value<std::uint8_t>() != 0;
  answer.relevance = in.value<double>();
  answer.confidence = in.value<double>();
  bool sound = is_text(entry.response) && std::isfinite(answer.relevance) &&
               std::isfinite(answer.confidence);
  answer.citations.resize(in.count(2 * sizeof(std::uint64_t)));
  sound = sound && answer.citations.size() <= kMaxCitations;
  for (auto& c : answer.citations) {
    c.source = in.string();
    c.excerpt = in.string();
    for (auto* number : {&c.start, &c.end, &c.line, &c.excerpt_line})
      *number = in.value<std::int64_t>();
    c.score = in.value<double>();
    c.holds_answer = in.value<std::uint8_t>() != 0;
    sound = sound && documents_.contains(c.source) && is_text(c.excerpt) && 0 <= c.start &&
            c.start <= c.end && std::isfinite(c.score);
  }
  if (!sound || !in.done()) return std::nullopt;
  return kept;
}

std::optional<CachedAnswers::Kept> CachedAnswers::keep(const Answer& fresh) const {
  Kept out;
  out.key = {0, RepKind::text, model_digest_, 0, kLayout, settings_digest_};
  for (const auto& candidate : fresh.candidates) {
    if (!candidate.placed) continue;
    const auto document = documents_.find(candidate.source);
    if (document == documents_.end()) return std::nullopt;  // read into the memory meanwhile
    out.provenance.push_back(document->second);
    if (out.key.span == 0) out.key.span = candidate.candidate.id;
  }
  if (out.key.span == 0) return std::nullopt;
  if (!fresh.citations.empty()) out.key.span = fresh.citations.front().span;
  out.answer.found = fresh.found;
  out.answer.quotation = fresh.quotation;
  out.answer.cut = fresh.cut;
  out.answer.relevance = fresh.relevance;
  out.answer.confidence = fresh.confidence;
  out.answer.citations = fresh.citations;
  return out;
}

std::optional<Answer> CachedAnswers::find(const std::string& question) {
  const auto started = std::chrono::steady_clock::now();
  report_ = {};
  embedding_.clear();
  if (text::trimmed(question).empty()) return std::nullopt;  // asking says what is wrong
  if (memory_.file().generation() != generation_) load();
  embedding_ = embedder_->embed(question).vector;
  decision_ = cache_->decide(embedding_);
  report_.hit = decision_.hit;
  report_.explored = decision_.entry && !decision_.hit;
  report_.entry = decision_.entry;
  report_.similarity = decision_.similarity;
  report_.explore_probability = decision_.explore_probability;
  report_.entries = cache_->size();
  if (!decision_.hit) return std::nullopt;

  auto& file = memory_.file();
  Answer out = kept_.at(*decision_.entry).answer;
  out.answer = cache_->find(*decision_.entry)->response;
  for (auto& citation : out.citations) {
    citation.file = file.path().string();
    for (const auto& span : file.spans(documents_.at(citation.source))) {
      if (span.kind == "passage" && span.begin == citation.start && span.end == citation.end)
        citation.span = span.id;
    }
  }
  out.threshold = memory_.prompt().not_found_below;
  if (!memory_.prompt().refusal.empty()) out.confidence_wanted = memory_.prompt().refused_below;
  out.tokens_in_memory = tokens_;
  out.model = memory_.model_name();
  out.adapter = memory_.adapter();
  out.kv = memory_.kv();
  if (options_.on_text) options_.on_text(out.answer);
  out.retrieve_s = out.first_token_s = out.total_s = seconds_since(started);
  store({*decision_.entry}, {}, true);
  return out;
}

void CachedAnswers::learn(const Answer& fresh) {
  // What was read while the memory was changed is of neither state.
  if (embedding_.empty() || memory_.file().generation() != generation_) return;
  // What no span was read for cost no model, and there is nothing that it would be forgotten with: it only teaches.
  const auto kept = keep(fresh);
  if (!kept && !decision_.entry) return;
  const auto learned = cache_->learn(decision_, embedding_, fresh.answer, kept.has_value());
  report_.right = learned.right;
  std::vector<std::int64_t> changed;
  if (decision_.entry) changed.push_back(*decision_.entry);
  if (learned.added) {
    auto& added = kept_[*learned.added] = *kept;
    added.key.layer = *learned.added;
    changed.push_back(*learned.added);
  }
  store(changed, learned.evicted, false);
}

void CachedAnswers::store(const std::vector<std::int64_t>& changed,
                          const std::vector<std::int64_t>& evicted, bool answered) {
  auto& file = memory_.file();
  for (const auto id : evicted) {
    stale_.push_back(kept_.at(id).key);
    kept_.erase(id);
  }
  report_.entries = cache_->size();
  std::vector<Rep> reps;
  for (const auto id : changed) {
    if (!kept_.contains(id)) continue;
    reps.push_back(write(id));
    // Numbers start again with other documents: what is written in the place of a stale entry must not go with it.
    std::erase_if(stale_, [&, &key = reps.back().key](const RepKey& stale) {
      return stale.span == key.span && stale.layer == key.layer &&
             stale.prefix_digest == key.prefix_digest;
    });
  }
  const auto report = file.put(reps, Admission::for_question);
  report_.stored = report.not_stored == 0;
  report_.obstacle = report.reason;
  // A file that cannot be written now is not waited for again.
  if (!report_.stored && report.obstacle != StoreReport::Obstacle::gone) return;
  if (file.drop_reps(stale_)) stale_.clear();
  file.add_counter(kPrompts, 1);
  if (answered) file.add_counter("questions", 1);
}

}  // namespace mneme
