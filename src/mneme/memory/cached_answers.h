// Cached answers: the response cache in front of asking one memory, kept in its file.
//
// An entry is a text representation of a span that was cited: the question's embedding, the answer with its citations, and
// what was observed. Its provenance is every document that the answer was read from, so that it goes when one of them is
// forgotten or replaced. It answers only while the documents are those that it was made over, and for the same model,
// adapter, embedder, prompt and settings: with any of them changed it is not found, and where the documents have changed
// it is deleted when next met. The question itself is not kept.
#pragma once

#include "mneme/memory/memory.h"
#include "mneme/memory/response_cache.h"

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace mneme {

/// What the cache did for a question.
struct CacheReport {
  bool hit = false;                   ///< the answer is a cached one
  bool explored = false;              ///< there was an entry, and the model was asked all the same
  std::optional<std::int64_t> entry;  ///< the nearest one
  double similarity = 0;              ///< with it
  double explore_probability = 1;
  std::optional<bool> right;  ///< of one that was explored: whether it would have been the answer
  std::int64_t entries = 0;   ///< afterwards, of this memory's documents and these settings
  bool stored = false;        ///< what was learned is in the file
  std::string obstacle;       ///< why it is not, in one line; empty where nothing was to be stored
};

class CachedAnswers {
 public:
  /// The entries of `memory`, by its embedder, for questions asked with `options`. Loads no language model, unless that is
  /// another one than the memory was read with. Throws as Memory::reader where a strict memory refuses its model.
  CachedAnswers(Memory& memory, std::shared_ptr<const SentenceEncoder> embedder,
                const AskOptions& options, std::shared_ptr<const ReusePolicy> policy,
                std::uint64_t seed);

  /// The cached answer to a question, or nothing: then ask the memory and say what it answered by learn(). Where the file
  /// cannot be written it is answered all the same.
  std::optional<Answer> find(const std::string& question);
  /// Takes the answer to the question that was last looked for in vain.
  void learn(const Answer& fresh);
  /// Of the question that was last looked for.
  [[nodiscard]] const CacheReport& report() const { return report_; }

 private:
  /// What an entry keeps beside its response.
  struct Kept {
    RepKey key;
    std::vector<std::int64_t> provenance;
    Answer answer;  ///< of it: found, quotation, cut, relevance, confidence, citations
  };
  void load();
  std::optional<Kept> read(const Rep& rep, ResponseCache::Entry& entry) const;
  [[nodiscard]] Rep write(std::int64_t id) const;
  /// What an answer would be kept as; nothing if it was read from no span of the memory.
  [[nodiscard]] std::optional<Kept> keep(const Answer& fresh) const;
  void store(const std::vector<std::int64_t>& changed, const std::vector<std::int64_t>& evicted,
             bool answered);

  Memory& memory_;
  std::shared_ptr<const SentenceEncoder> embedder_;
  AskOptions options_;
  std::shared_ptr<const ReusePolicy> policy_;
  std::uint64_t seed_;
  std::string model_digest_, documents_digest_, settings_digest_;
  std::int64_t generation_ = -1;                   ///< of the file, when the entries were loaded
  std::map<std::string, std::int64_t> documents_;  ///< sources by label
  std::int64_t tokens_ = 0;                        ///< in memory
  std::optional<ResponseCache> cache_;
  std::map<std::int64_t, Kept> kept_;
  std::vector<RepKey> stale_;  ///< to be deleted when something is written
  std::vector<float> embedding_;
  ResponseCache::Decision decision_;
  CacheReport report_;
};

}  // namespace mneme
