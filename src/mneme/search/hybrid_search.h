// Hybrid search: dense and lexical search, fused and reordered.
#pragma once

#include "mneme/search/dense_index.h"
#include "mneme/search/lexical_index.h"
#include "mneme/search/ranking.h"

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace mneme {

/// Finds the spans for a question: `retrieve` each from both indexes, reciprocal-rank fusion, then
/// the first `depth` sorted by cosine + cover_weight * cover. Both indexes must outlive this; ids
/// are span ids in both.
class HybridSearch {
 public:
  /// Throws `invalid` for options below 1 (retrieve, depth), a negative rrf_k or a weight that is
  /// not finite.
  HybridSearch(const DenseIndex& dense, const LexicalIndex& lexical, RankingOptions options = {});

  /// At most `limit` candidates, best first, all scores filled in; those behind the first `depth`
  /// stand in the order of the fusion. `embedding` is the question's unit vector; an empty one
  /// searches by words only. With `within` both indexes look at those ids alone, all of them; term
  /// rarity stays that of the whole index. A span without a vector can be found by its words.
  [[nodiscard]] std::vector<Candidate> search(
      std::span<const float> embedding, std::string_view question, std::int64_t limit,
      const std::vector<std::int64_t>* within = nullptr) const;

  [[nodiscard]] const RankingOptions& options() const noexcept { return options_; }

 private:
  const DenseIndex* dense_;
  const LexicalIndex* lexical_;
  RankingOptions options_;
};

}  // namespace mneme
