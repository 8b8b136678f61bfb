#include "mneme/search/hybrid_search.h"

#include "mneme/core/error.h"
#include "mneme/search/fusion.h"

#include <array>
#include <cmath>
#include <fmt/format.h>

namespace mneme {

HybridSearch::HybridSearch(const DenseIndex& dense, const LexicalIndex& lexical,
                           RankingOptions options)
    : dense_(&dense), lexical_(&lexical), options_(options) {
  if (options.retrieve < 1 || options.depth < 1 || !(options.rrf_k >= 0) ||
      !std::isfinite(options.cover_weight)) {
    throw Error(Errc::invalid,
                fmt::format("ranking with retrieve={}, depth={}, rrf_k={}, cover_weight={}: wanted "
                            "at least 1, 1, 0 and a "
                            "finite weight",
                            options.retrieve, options.depth, options.rrf_k, options.cover_weight));
  }
}

std::vector<Candidate> HybridSearch::search(std::span<const float> embedding,
                                            std::string_view question, std::int64_t limit,
                                            const std::vector<std::int64_t>* within) const {
  std::array<std::vector<std::int64_t>, 2> lists;
  if (!embedding.empty()) {
    for (const auto& found : dense_->search(embedding, options_.retrieve, within))
      lists[0].push_back(found.id);
  }
  for (const auto& found : lexical_->search(question, options_.retrieve, within))
    lists[1].push_back(found.id);
  const auto fused =
      search::reciprocal_rank_fusion(lists, options_.rrf_k, std::max(limit, options_.depth));

  std::vector<Candidate> out;
  std::vector<std::int64_t> ids, embedded;
  for (const auto& f : fused) {
    out.push_back({f.id, 0, 0, f.rrf, 0, 0});
    ids.push_back(f.id);
    if (!embedding.empty() && dense_->contains(f.id)) embedded.push_back(f.id);
  }
  const auto cosines =
      embedded.empty() ? std::vector<float>() : dense_->cosines(embedding, embedded);
  const auto terms = search::weigh_terms(question, *lexical_);
  const auto covers = search::cover(terms, ids, *lexical_);
  const auto mass = search::mass(terms),
             one_word = search::inverse_document_frequency(lexical_->size(), 0);
  const auto trust = mass > 0 ? mass / (mass + one_word) : 0;
  for (std::size_t i = 0, j = 0; i < out.size(); ++i) {
    if (j < embedded.size() && embedded[j] == out[i].id) out[i].cosine = cosines[j++];
    out[i].cover = covers[i];
    out[i].score = out[i].cosine + options_.cover_weight * out[i].cover;
    out[i].relevance = out[i].cosine + trust * out[i].cover;
  }
  search::reorder(out, options_.depth);
  if (static_cast<std::int64_t>(out.size()) > limit)
    out.resize(static_cast<std::size_t>(std::max<std::int64_t>(limit, 0)));
  return out;
}

}  // namespace mneme
