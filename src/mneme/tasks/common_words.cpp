// common_words: RULER's common words extraction: a shuffled, numbered list in which some words come more often.
//
//   list      `words` common words, each `common` times, and as many others as fit, each `uncommon` times
//   asked     the common ones
//   worth     the share of them that the answer holds
//
// spec      common_words(words=10, common=0, uncommon=0, shots=1)
// source    Hsieh et al. 2024, arXiv:2404.06654
// departs   words are of our own list, beyond its end compounds of two of its nouns
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/tasks/haystack.h"
#include "mneme/tasks/recall.h"
#include "mneme/tasks/ruler_parts.h"
#include "mneme/tasks/string_match.h"
#include "mneme/tasks/word_list.h"

#include <algorithm>
#include <fmt/format.h>
#include <set>

namespace mneme::tasks::common_words {
namespace {

// From so many tokens on RULER repeats words more often.
constexpr std::int64_t kLongText = 4096;
constexpr std::string_view kTask =
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n";

std::string numbered(const std::vector<std::string>& words) {
  std::string out;
  for (std::size_t i = 0; i < words.size(); ++i) out += fmt::format(" {}. {}", i + 1, words[i]);
  return out;
}

/// The words, each so many times, in random order.
std::vector<std::string> repeated(const std::vector<std::string>& common, std::int64_t times,
                                  const std::vector<std::string>& others, std::int64_t other_times,
                                  Generator& generator) {
  std::vector<std::string> out;
  for (std::int64_t i = 0; i < times; ++i) out.insert(out.end(), common.begin(), common.end());
  for (std::int64_t i = 0; i < other_times; ++i)
    out.insert(out.end(), others.begin(), others.end());
  reorder(out, generator);
  return out;
}

/// Words that differ, without an end: first the list's in random order, then compounds. The first
/// `whole` stand in none of those after them.
class Words {
 public:
  Words(Generator& generator, std::size_t whole) : generator_(generator), whole_(whole) {
    for (const auto list : {adjectives(), nouns(), verbs()})
      left_.insert(left_.end(), list.begin(), list.end());
    reorder(left_, generator_);
  }
  std::string next() {
    for (;;) {
      auto word = candidate();
      const auto inside = [&](const auto& one) {
        return word.find(one) != std::string::npos || one.find(word) != std::string::npos;
      };
      if (std::any_of(first_.begin(), first_.end(), inside) || !given_.insert(word).second)
        continue;
      if (first_.size() < whole_) first_.push_back(word);
      return word;
    }
  }

 private:
  std::string candidate() {
    if (left_.empty()) {
      const auto front = pick(nouns(), generator_);
      return fmt::format("{}{}", front, pick(nouns(), generator_));
    }
    auto out = std::move(left_.back());
    left_.pop_back();
    return out;
  }

  Generator& generator_;
  std::size_t whole_;
  std::vector<std::string> left_, first_;
  std::set<std::string> given_;
};

}  // namespace

class CommonWords final : public RecallTask {
 public:
  struct Options {
    std::int64_t words = 10, common = 0, uncommon = 0, shots = 1;
  };
  static void describe(Describe& d, Options& o) {
    d("words", o.words, within(1, 40), "common words");
    d("common", o.common, at_least(0), "how often each comes; 0: 30 times, 6 below 4096 tokens");
    d("uncommon", o.uncommon, at_least(0),
      "how often another comes; 0: 3 times, once below 4096 tokens");
    d("shots", o.shots, within(0, 8), "solved examples before the list");
  }
  CommonWords(const Options& o, const std::filesystem::path& /*data*/) : o_(o) {}

  [[nodiscard]] RecallSample draw(const RecallRequest& request, const Tokenizer& tokenizer,
                                  Generator& generator) const override {
    const bool is_long = request.tokens >= kLongText;
    const auto common_times = o_.common > 0 ? o_.common
                              : is_long     ? 30
                                            : 6,
               other_times = o_.uncommon > 0 ? o_.uncommon
                             : is_long       ? 3
                                             : 1;
    if (other_times >= common_times) {
      throw Error(Errc::usage,
                  fmt::format("common_words: {} times is not more often than {}: give common above "
                              "uncommon",
                              common_times, other_times));
    }
    RecallSample out;
    out.question = fmt::format(
        "\nQuestion: What are the {0} most common words in the above list? Answer: The "
        "top {0} words that appear most often in the list are:",
        o_.words);
    const auto words = static_cast<std::size_t>(o_.words);
    std::string before;
    for (std::int64_t i = 0; i < o_.shots; ++i) {
      // RULER's example has 10 common words of 20 or 40.
      const auto uncommon = static_cast<std::size_t>(is_long ? 30 : 10);
      Words of_example(generator, words);
      const auto common = next(of_example, words), others = next(of_example, uncommon);
      const auto list = repeated(common, is_long ? 10 : 3, others, is_long ? 3 : 1, generator);
      before += fmt::format("{}{}{}{}\n", kTask, numbered(list).substr(1), out.question,
                            numbered(common));
    }
    before += kTask;

    const auto tokens_of = [&](std::string_view text) {
      return static_cast<std::int64_t>(tokenizer.encode(text).size());
    };
    Words source(generator, words);
    const auto common = next(source, words);
    std::vector<std::string> others;
    std::int64_t counted = tokens_of(before + out.question), entries = 0;
    const auto tokens_of_more = [&](const std::string& word, std::int64_t times) {
      auto more = times * tokens_of(" " + word);
      for (std::int64_t i = 1; i <= times; ++i) more += tokens_of(fmt::format(" {}.", entries + i));
      return more;
    };
    for (const auto& word : common) {
      counted += tokens_of_more(word, common_times);
      entries += common_times;
    }
    while (counted < request.tokens) {
      auto word = source.next();
      counted += tokens_of_more(word, other_times);
      if (counted > request.tokens) break;
      entries += other_times;
      others.push_back(std::move(word));
    }
    // Tokens may join or part where words meet, so what counts is the text as a whole.
    std::vector<std::string> list;
    for (;;) {
      auto kept = generator;  // the same order of what is left
      list = repeated(common, common_times, others, other_times, kept);
      out.context = before + numbered(list).substr(1);
      const auto all = tokens_of(out.context + out.question);
      if (all <= request.tokens) {
        generator = kept;
        break;
      }
      if (others.empty()) refuse_tokens("common_words", request.tokens, all);
      others.pop_back();
    }

    auto at = before.size();
    for (std::size_t i = 0; i < list.size(); ++i) {
      at += fmt::format("{}{}. ", i == 0 ? "" : " ", i + 1).size();
      const auto begin = static_cast<std::int64_t>(at);
      at += list[i].size();
      if (std::find(common.begin(), common.end(), list[i]) == common.end()) continue;
      out.evidence.emplace_back(begin, static_cast<std::int64_t>(at));
      if (std::find(out.answers.begin(), out.answers.end(), list[i]) == out.answers.end())
        out.answers.push_back(list[i]);
    }
    out.candidates = {numbered(out.answers)};
    while (others.size() < words) others.push_back(source.next());
    while (out.candidates.size() < kRulerCandidates) {
      // Words of the same list, among them common ones.
      auto wrong = out.answers;
      const auto kept = below(generator, words);
      std::size_t filled = kept;
      for (const auto i : distinct(generator, others.size(), words - kept))
        wrong[filled++] = others[i];
      reorder(wrong, generator);
      auto text = numbered(wrong);
      if (std::find(out.candidates.begin(), out.candidates.end(), text) == out.candidates.end())
        out.candidates.push_back(std::move(text));
      else
        others.push_back(source.next());
    }
    return out;
  }

  [[nodiscard]] double score(std::string_view said, const RecallSample& sample) const override {
    return string_match_all(said, sample.answers);
  }
  [[nodiscard]] std::int64_t answer_tokens() const override { return 12 * o_.words; }

 private:
  static std::vector<std::string> next(Words& words, std::size_t count) {
    std::vector<std::string> out;
    while (out.size() < count) out.push_back(words.next());
    return out;
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<RecallTask, CommonWords>(
      "common_words", "RULER: the words that come most often in a numbered list", "ruler-2024");
}

}  // namespace mneme::tasks::common_words
