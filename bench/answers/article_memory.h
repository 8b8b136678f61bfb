// ArticleMemory: a memory file of whole articles, made for one measurement and deleted after it.
#pragma once

#include "mneme/memory/memory.h"

#include "bench/answers/question_set.h"
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace mneme::bench {

/// What retrieval gave for one question.
struct Retrieval {
  std::vector<std::int64_t> spans;  ///< best first
  std::vector<double> scores;       ///< of the spans
  std::int64_t gold_rank = 0;       ///< of the first gold passage, from 1; 0: not among them
  double relevance = 0;             ///< that the threshold of "not found" is compared with
};

class ArticleMemory {
 public:
  /// Reads the articles lazily, as `mneme read` does.
  ArticleMemory(const std::filesystem::path& file, const QuestionSet& set,
                const std::vector<std::size_t>& articles, std::shared_ptr<MemoryModels> models);

  [[nodiscard]] Memory& memory() { return *memory_; }
  [[nodiscard]] std::int64_t passages() const { return static_cast<std::int64_t>(places_.size()); }
  [[nodiscard]] std::int64_t tokens() const { return tokens_; }

  /// Searches for a question of the set.
  [[nodiscard]] Retrieval retrieve(const ArticleQuestion& question);
  /// How relevant the best passages are to any text.
  [[nodiscard]] double relevance(const std::string& question);
  /// Whether a passage is a question's gold one.
  [[nodiscard]] bool gold(const ArticleQuestion& question, std::int64_t span) const;
  /// The article of a label; npos if there is none.
  [[nodiscard]] std::size_t article(const std::string& label) const;
  static constexpr std::size_t npos = static_cast<std::size_t>(-1);

 private:
  struct Place {
    std::size_t article = 0;
    std::int64_t begin = 0, end = 0;
  };
  const QuestionSet& set_;
  std::unique_ptr<Memory> memory_;
  std::map<std::string, std::size_t> by_label_;
  std::map<std::int64_t, Place> places_;  // by span
  std::int64_t tokens_ = 0;
};

}  // namespace mneme::bench
