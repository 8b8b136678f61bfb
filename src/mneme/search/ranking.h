// Ordering what was found: cosine and the share of the question's words that a span holds.
#pragma once

#include "mneme/search/lexical_index.h"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// A span that may answer a question, with everything that its place rests on.
struct Candidate {
  std::int64_t id = 0;
  double cosine = 0;  ///< of its embedding with the question's; 0 if it has none
  double cover = 0;   ///< share of the question's terms that it holds, weighed by rarity, 0 to 1
  double rrf = 0;     ///< reciprocal-rank fusion of dense and lexical search
  double score = 0;   ///< cosine + cover_weight * cover
  double relevance =
      0;  ///< cosine + cover * m / (m + r): how surely it has to do with the question; see relevance()
};

/// How candidates are found and ordered. The defaults are the best of those tried on 759 tuning
/// questions.
struct RankingOptions {
  std::int64_t retrieve = 100;  ///< spans asked of each of dense and lexical search
  double rrf_k = 10;            ///< constant of the fusion
  std::int64_t depth = 20;      ///< how many of the fused list are reordered
  double cover_weight = 0.5;    ///< weight of cover beside cosine in the order
};

namespace search {

/// English function words: they say nothing of what a question is about.
std::span<const std::string_view> stop_words() noexcept;

/// Rarity of a term that `df` of `n` spans hold: ln(1 + (n - df + 0.5) / (df + 0.5)), above 0 for
/// any df <= n.
double inverse_document_frequency(std::int64_t n, std::int64_t df);

/// A term of a question and its weight.
struct WeighedTerm {
  Term term;
  double idf = 0;
};

/// The terms of a question without stop words (all of them if nothing else is left), weighed by
/// rarity in the index.
std::vector<WeighedTerm> weigh_terms(std::string_view question, const LexicalIndex& index);

/// The idf of all terms together.
double mass(std::span<const WeighedTerm> terms) noexcept;

/// For each id the idf mass of the terms that the span holds over that of all of them; 0 if there
/// are none.
std::vector<double> cover(std::span<const WeighedTerm> terms, std::span<const std::int64_t> ids,
                          const LexicalIndex& index);

/// Sorts the first `depth` candidates by falling score; equal scores and the rest keep their
/// places.
void reorder(std::vector<Candidate>& candidates, std::int64_t depth);

/// How surely the memory has to do with the question at all: the largest `relevance` among the first
/// `depth`; 0 if there are none. Below the memory's threshold the answer is "not found". It tells
/// topics, not answers.
///
///   cosine + cover * m / (m + r),   m the idf mass of the question, r that of one word that no span holds
///
/// Shares of few words say little: without r a question of one common word would always be covered.
double relevance(std::span<const Candidate> candidates,
                 std::int64_t depth = RankingOptions{}.depth);

}  // namespace search
}  // namespace mneme
