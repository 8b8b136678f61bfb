#include "bench/answers/article_memory.h"

#include "mneme/core/error.h"
#include "mneme/core/progress.h"
#include "mneme/search/ranking.h"

#include <fmt/format.h>

namespace mneme::bench {
namespace {

// All states of all articles fit: what is measured is reading answers, not consolidation.
constexpr std::int64_t kBudgetBytes = std::int64_t{8} << 30;
// Recall is reported up to the tenth passage, relevance looks at the first twenty.
constexpr std::int64_t kSearched = 20;

std::vector<Candidate> candidates_of(const std::vector<CandidateReport>& reports) {
  std::vector<Candidate> out;
  for (const auto& report : reports) out.push_back(report.candidate);
  return out;
}

}  // namespace

ArticleMemory::ArticleMemory(const std::filesystem::path& file, const QuestionSet& set,
                             const std::vector<std::size_t>& articles,
                             std::shared_ptr<MemoryModels> models)
    : set_(set) {
  MemoryOptions options;
  options.access = MemoryFile::Access::create;
  options.budget_bytes = kBudgetBytes;
  memory_ = Memory::open(file, std::move(models), options);
  std::vector<Document> documents;
  for (const auto a : articles) {
    documents.push_back(set.articles[a].document());
    by_label_[set.articles[a].title] = a;
  }
  Progress progress(fmt::format("reading {} articles", articles.size()), 0, "articles");
  tokens_ = memory_->read(std::move(documents), {}).tokens_read;
  progress.advance(static_cast<std::int64_t>(articles.size()));
  std::map<std::int64_t, std::size_t> by_document;
  for (const auto& info : memory_->file().documents())
    by_document[info.document.id] = by_label_.at(info.document.label);
  memory_->file().for_each_passage([&](const Span& span) {
    places_[span.id] = {by_document.at(span.document), span.begin, span.end};
  });
}

Retrieval ArticleMemory::retrieve(const ArticleQuestion& question) {
  const auto found = candidates_of(memory_->search(question.text, kSearched));
  Retrieval out;
  out.relevance = search::relevance(found);
  for (const auto& candidate : found) {
    out.spans.push_back(candidate.id);
    out.scores.push_back(candidate.score);
    if (out.gold_rank == 0 && gold(question, candidate.id))
      out.gold_rank = static_cast<std::int64_t>(out.spans.size());
  }
  return out;
}

double ArticleMemory::relevance(const std::string& question) {
  return search::relevance(candidates_of(memory_->search(question, kSearched)));
}

bool ArticleMemory::gold(const ArticleQuestion& question, std::int64_t span) const {
  const auto found = places_.find(span);
  return found != places_.end() &&
         is_gold(set_, question, found->second.article, found->second.begin, found->second.end);
}

std::size_t ArticleMemory::article(const std::string& label) const {
  const auto found = by_label_.find(label);
  return found == by_label_.end() ? npos : found->second;
}

}  // namespace mneme::bench
