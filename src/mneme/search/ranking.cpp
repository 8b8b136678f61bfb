#include "mneme/search/ranking.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace mneme::search {
namespace {

// The list that calibration was done with; the threshold of a memory rests on it.
constexpr std::string_view kStopWords[] = {
    "a",     "an",    "and",   "are",   "as",  "at",   "be",   "been", "by",   "did",
    "do",    "does",  "for",   "from",  "had", "has",  "have", "how",  "in",   "is",
    "it",    "its",   "many",  "much",  "of",  "on",   "or",   "s",    "that", "the",
    "their", "there", "these", "this",  "to",  "was",  "were", "what", "when", "where",
    "which", "who",   "whom",  "whose", "why", "will", "with", "would"};

}  // namespace

std::span<const std::string_view> stop_words() noexcept { return kStopWords; }

double inverse_document_frequency(std::int64_t n, std::int64_t df) {
  const auto spans = static_cast<double>(n), holding = static_cast<double>(df);
  return std::log(1.0 + (spans - holding + 0.5) / (holding + 0.5));
}

std::vector<WeighedTerm> weigh_terms(std::string_view question, const LexicalIndex& index) {
  // Stop words are compared as stems: the index knows no others.
  std::set<std::string> stops;
  for (const auto word : kStopWords) stops.merge(index.terms(word));
  const auto all = index.split(question);
  std::vector<WeighedTerm> out;
  for (const auto& term : all) {
    if (!stops.contains(term.stem)) out.push_back({term, 0});
  }
  if (out.empty()) {
    for (const auto& term : all) out.push_back({term, 0});
  }
  const auto n = index.size();
  for (auto& t : out)
    t.idf = inverse_document_frequency(n, std::min(n, index.document_frequency(t.term)));
  return out;
}

double mass(std::span<const WeighedTerm> terms) noexcept {
  double total = 0;
  for (const auto& t : terms) total += t.idf;
  return total;
}

std::vector<double> cover(std::span<const WeighedTerm> terms, std::span<const std::int64_t> ids,
                          const LexicalIndex& index) {
  std::vector<double> out(ids.size(), 0);
  const double total = mass(terms);
  for (const auto& t : terms) {
    const auto held = index.holds(t.term, ids);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (held[i]) out[i] += t.idf;
    }
  }
  if (total > 0) {
    for (auto& share : out) share /= total;
  }
  return out;
}

void reorder(std::vector<Candidate>& candidates, std::int64_t depth) {
  const auto first =
      std::min<std::ptrdiff_t>(std::max<std::int64_t>(depth, 0), std::ssize(candidates));
  std::stable_sort(candidates.begin(), candidates.begin() + first,
                   [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
}

double relevance(std::span<const Candidate> candidates, std::int64_t depth) {
  double best = 0;
  const auto first =
      std::min<std::ptrdiff_t>(std::max<std::int64_t>(depth, 0), std::ssize(candidates));
  for (const auto& c : candidates.first(static_cast<std::size_t>(first)))
    best = std::max(best, c.relevance);
  return best;
}

}  // namespace mneme::search
