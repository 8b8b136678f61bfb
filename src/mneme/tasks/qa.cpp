// qa: RULER's questions on one of many documents: a paragraph that answers, among others, first of the same article.
//
//   asked     a question of SQuAD's on the paragraph
//   worth     1 if the answer holds one of the annotators' answers, else 0
//
// spec      qa
// needs     SQuAD's development set v1.1 in `squad`
// source    Hsieh et al. 2024, arXiv:2404.06654; Rajpurkar et al. 2016, arXiv:1606.05250
// departs   v1.1 instead of the answerable questions of v2.0; only those of the articles that nothing is trained on;
//           HotpotQA is not served
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/tasks/haystack.h"
#include "mneme/tasks/recall.h"
#include "mneme/tasks/ruler_parts.h"
#include "mneme/tasks/squad.h"
#include "mneme/tasks/string_match.h"

#include <algorithm>
#include <fmt/format.h>

namespace mneme::tasks::qa {
namespace {

constexpr const char* kFile = "squad/dev-v1.1.json.gz";
// How many documents in a row may be too long for what is left.
constexpr int kDocumentsTooLong = 16;
constexpr std::string_view kTask =
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.";

bool any_digit(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

class Qa final : public RecallTask {
 public:
  explicit Qa(const std::filesystem::path& data) {
    const auto file = data / kFile;
    if (!std::filesystem::is_regular_file(file)) {
      throw Error(Errc::not_found,
                  fmt::format("no {}: point --data (or MNEME_DATA) at a folder with SQuAD's "
                              "development set v1.1",
                              file.string()));
    }
    const auto titles = squad_test_titles();
    for (const auto& article : load_squad(file)) {
      if (std::find(titles.begin(), titles.end(), article.title) == titles.end()) continue;
      for (const auto& question : article.questions) {
        if (question.answers.empty()) continue;
        questions_.push_back({articles_.size(), question.paragraph, question.text, {}});
        for (const auto& answer : question.answers) {
          auto& all = questions_.back().answers;
          if (std::find(all.begin(), all.end(), answer) == all.end()) all.push_back(answer);
        }
      }
      articles_.emplace_back();
      for (const auto& paragraph : article.paragraphs)
        articles_.back().push_back(trimmed(paragraph));
    }
    if (questions_.empty()) {
      throw Error(Errc::invalid, fmt::format("{}: holds no question on an article that is kept for "
                                             "tests: fetch the official file",
                                             file.string()));
    }
  }

  [[nodiscard]] RecallSample draw(const RecallRequest& request, const Tokenizer& tokenizer,
                                  Generator& generator) const override {
    const auto& asked = pick(questions_, generator);
    RecallSample out;
    out.question = fmt::format("\n\n{}\n\nQuestion: {} Answer:", kTask, asked.text);
    const auto title = [](std::size_t i) { return fmt::format("Document {}:\n", i + 1); };
    const Frame frame{
        "qa",         fmt::format("{}\n\nThe following are given documents.\n\n", kTask),
        "\n\n",       "",
        out.question, title};
    const auto tokens_of = [&](std::string_view text) {
      return static_cast<std::int64_t>(tokenizer.encode(text).size());
    };

    // The other paragraphs of the article, then those of other articles, as many as fit.
    std::vector<std::pair<std::size_t, std::size_t>> same, other;
    for (std::size_t a = 0; a < articles_.size(); ++a) {
      for (std::size_t p = 0; p < articles_[a].size(); ++p) {
        if (a != asked.article)
          other.emplace_back(a, p);
        else if (p != asked.paragraph)
          same.emplace_back(a, p);
      }
    }
    reorder(same, generator);
    reorder(other, generator);
    same.insert(same.end(), other.begin(), other.end());
    const auto& gold = articles_[asked.article][asked.paragraph];
    auto counted = tokens_of(frame.before + title(0) + gold + frame.question);
    std::vector<std::string> documents;
    int too_long = 0;
    for (const auto& [a, p] : same) {
      const auto more = tokens_of(frame.between + title(documents.size() + 1) + articles_[a][p]);
      if (counted + more > request.tokens) {
        if (++too_long == kDocumentsTooLong) break;
        continue;
      }
      counted += more;
      documents.push_back(articles_[a][p]);
    }
    reorder(documents, generator);
    const auto anywhere = generator.uniform();
    const std::vector<Fact> facts = {{gold, request.depth >= 0 ? request.depth : anywhere}};
    const auto filler = [&documents,
                         next = std::size_t{0}]() mutable -> std::optional<std::string> {
      if (next == documents.size()) return std::nullopt;
      return documents[next++];
    };
    auto text = fill(frame, facts, filler, request.tokens, tokenizer);
    out.context = std::move(text.context);
    out.evidence = text.facts;
    out.answers = asked.answers;
    out.candidates = candidates(asked, generator);
    return out;
  }

  [[nodiscard]] double score(std::string_view said, const RecallSample& sample) const override {
    return string_match_part(said, sample.answers);
  }

 private:
  struct Question {
    std::size_t article = 0, paragraph = 0;
    std::string text;
    std::vector<std::string> answers;
  };

  /// The first answer, then answers to other questions on the article, of those that have digits if it
  /// has, else of those that have none, as far as there are enough.
  [[nodiscard]] std::vector<std::string> candidates(const Question& asked,
                                                    Generator& generator) const {
    std::vector<std::string> out = {" " + asked.answers.front()};
    std::vector<std::string> seen;
    for (const auto& answer : asked.answers) seen.push_back(normalised(answer));
    const auto overlaps = [&](const std::string& answer) {
      return answer.empty() || std::any_of(seen.begin(), seen.end(), [&](const auto& one) {
               return holds_words(one, answer) || holds_words(answer, one);
             });
    };
    std::vector<std::size_t> order(questions_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    reorder(order, generator);
    const bool digits = any_digit(asked.answers.front());
    const auto distance = [&](std::size_t i) {
      return (questions_[i].article == asked.article ? 0 : 1) +
             (any_digit(questions_[i].answers.front()) == digits ? 0 : 2);
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return distance(a) < distance(b); });
    for (const auto i : order) {
      if (out.size() == kRulerCandidates) break;
      const auto& answer = questions_[i].answers.front();
      auto words = normalised(answer);
      if (overlaps(words)) continue;
      seen.push_back(std::move(words));
      out.push_back(" " + answer);
    }
    return out;
  }

  std::vector<std::vector<std::string>> articles_;  // paragraphs
  std::vector<Question> questions_;
};

void enrol(Registry& r) {
  r.add<RecallTask, Qa>("qa", "RULER: questions on one of many paragraphs (SQuAD)", "ruler-2024");
}

}  // namespace mneme::tasks::qa
