#include "bench/answers/question_set.h"

#include "mneme/core/error.h"
#include "mneme/weights/digests.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <iterator>
#include <sstream>

namespace mneme::bench {
namespace {

// The first articles of the file are for tuning, the others for final figures.
constexpr std::size_t kTuningArticles = 16;
constexpr std::size_t kStrangers = 200;
constexpr std::size_t kUnanswerable = 300;

constexpr std::array<std::string_view, 10> kTuning = {"Amazon_rainforest",
                                                      "Apollo_program",
                                                      "Black_Death",
                                                      "Computational_complexity_theory",
                                                      "Construction",
                                                      "Ctenophora",
                                                      "Economic_inequality",
                                                      "European_Union_law",
                                                      "Force",
                                                      "Fresno,_California"};

/// Sorts by the digest of a key: an order that has nothing to do with the content and is the same everywhere.
template <class T, class Key>
void shuffle(std::vector<T>& items, const Key& key) {
  std::vector<std::pair<std::string, T>> keyed;
  for (auto& item : items)
    keyed.emplace_back(sha256_hex(std::string_view(key(item))), std::move(item));
  std::sort(keyed.begin(), keyed.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  items.clear();
  for (auto& [digest, item] : keyed) items.push_back(std::move(item));
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    if (!line.empty()) out.push_back(line);
  }
  return out;
}

/// The first `n` in the order of their digests.
std::vector<std::string> pick(std::vector<std::string> texts, std::size_t n) {
  shuffle(texts, [](const std::string& text) { return text; });
  texts.resize(std::min(n, texts.size()));
  return texts;
}

std::vector<std::size_t> range(std::size_t begin, std::size_t end) {
  std::vector<std::size_t> out;
  for (auto i = begin; i < end; ++i) out.push_back(i);
  return out;
}

}  // namespace

QuestionSet choose_questions(const std::filesystem::path& data, const std::string& split,
                             std::int64_t count) {
  const auto folder = data / "squad";
  if (!std::filesystem::exists(folder / "dev-v1.1.json.gz")) {
    throw Error(
        Errc::not_found,
        fmt::format(
            "no {}: point --data (or MNEME_DATA) at a folder with SQuAD's dev set v1.1 in it",
            (folder / "dev-v1.1.json.gz").string()));
  }
  const auto squad = tasks::load_squad(folder / "dev-v1.1.json.gz");
  if (squad.size() <= kTuningArticles)
    throw Error(Errc::corrupt, fmt::format("{}: only {} articles", folder.string(), squad.size()));
  const bool tuning = split != "final", held_back = split == "held-back";
  const auto list = [](const auto& of) {
    return std::vector<std::string_view>(of.begin(), of.end());
  };
  const auto titles = held_back ? list(tasks::squad_tuning_titles())
                      : tuning  ? list(kTuning)
                                : list(tasks::squad_test_titles());

  QuestionSet out;
  out.split = split;
  for (const auto& article : squad) out.articles.push_back(tasks::article_text(article));
  for (const auto title : titles) {
    const auto found =
        std::find_if(squad.begin(), squad.end(), [&](const auto& a) { return a.title == title; });
    if (found == squad.end())
      throw Error(Errc::not_found,
                  fmt::format("{}: the article '{}' is missing", folder.string(), title));
    out.asked.push_back(static_cast<std::size_t>(found - squad.begin()));
  }
  std::sort(out.asked.begin(), out.asked.end());
  out.small = out.asked;
  for (std::size_t a = 0; held_back && a < kTuningArticles; ++a) {
    const bool in = std::binary_search(out.asked.begin(), out.asked.end(), a);
    if (!in && out.small.size() < tasks::squad_test_titles().size()) out.small.push_back(a);
  }
  out.all = tuning ? range(0, kTuningArticles) : range(0, squad.size());

  const auto add_questions = [](std::vector<std::string>& to, const auto& article) {
    for (const auto& question : article.questions) to.push_back(tasks::trimmed(question.text));
  };
  std::vector<std::string> strangers;
  for (const auto a : tuning ? range(0, kTuningArticles) : range(kTuningArticles, squad.size())) {
    if (std::binary_search(out.asked.begin(), out.asked.end(), a)) continue;
    add_questions(strangers, squad[a]);
  }
  out.strangers = pick(std::move(strangers), kStrangers);
  if (tuning) {
    // No tuning article is left for a memory of all of them: questions on articles of SQuAD's training set, which the
    // file of pairs gives in lower case and with spaces between all tokens.
    out.without_strangers = out.all;
    if (std::filesystem::exists(folder / "pairs-questions.txt.gz")) {
      out.more_strangers =
          pick(lines_of(tasks::read_gzip(folder / "pairs-questions.txt.gz")), kStrangers);
    }
    if (held_back) out.strangers = out.more_strangers;  // readers were trained on the others
  } else {
    std::vector<std::string> unseen;
    for (const auto& article : squad) {
      const auto& held = tasks::squad_tuning_titles();
      if (std::find(held.begin(), held.end(), article.title) != held.end())
        add_questions(unseen, article);
    }
    out.unseen_strangers = pick(std::move(unseen), kStrangers);
    for (const auto a : out.all) {
      if (a < kTuningArticles || std::binary_search(out.asked.begin(), out.asked.end(), a))
        out.without_strangers.push_back(a);
    }
  }

  for (const auto a : out.asked) {
    for (const auto& question : squad[a].questions) {
      out.others.push_back(
          {question.id, tasks::trimmed(question.text), question.answers, a, question.paragraph});
    }
  }
  shuffle(out.others, [](const ArticleQuestion& question) { return question.id; });
  const auto n = std::min(out.others.size(), static_cast<std::size_t>(count));
  out.questions.assign(
      std::make_move_iterator(out.others.begin()),
      std::make_move_iterator(out.others.begin() + static_cast<std::ptrdiff_t>(n)));
  out.others.erase(out.others.begin(), out.others.begin() + static_cast<std::ptrdiff_t>(n));

  if (std::filesystem::exists(folder / "dev-v2.0.json.gz")) {
    std::vector<std::string> unanswerable;
    for (const auto& article : tasks::load_squad(folder / "dev-v2.0.json.gz")) {
      if (std::find(titles.begin(), titles.end(), article.title) == titles.end()) continue;
      for (const auto& question : article.questions) {
        if (question.impossible) unanswerable.push_back(tasks::trimmed(question.text));
      }
    }
    out.unanswerable = pick(std::move(unanswerable), kUnanswerable);
  }
  return out;
}

bool is_gold(const QuestionSet& set, const ArticleQuestion& question, std::size_t article,
             std::int64_t begin, std::int64_t end) {
  if (article != question.article) return false;
  const auto& text = set.articles[article];
  const auto [first, last] = text.paragraphs[question.paragraph];
  if (begin >= last || end <= first) return false;
  if (begin <= first && end >= last) return true;
  const auto from = std::max(begin, first), to = std::min(end, last);
  return holds_gold_answer(std::string_view(text.text).substr(static_cast<std::size_t>(from),
                                                              static_cast<std::size_t>(to - from)),
                           question);
}

bool holds_gold_answer(std::string_view text, const ArticleQuestion& question) {
  return std::any_of(question.answers.begin(), question.answers.end(),
                     [&](const auto& answer) { return tasks::holds_answer(text, answer); });
}

}  // namespace mneme::bench
