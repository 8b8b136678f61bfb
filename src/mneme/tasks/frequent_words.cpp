// frequent_words: RULER's frequent words extraction: coded words whose frequencies fall as a power of their rank.
//
//   count     of the word of rank k among n:  floor(n k^-alpha / zeta(alpha)),  in random order
//   asked     the words of ranks 2, 3 and 4; the first rank is "...", to be ignored
//   worth     the share of them that the answer holds
//
// There are as many words as a fiftieth of the tokens, of `letters` random letters each. n is as large as fits.
//
// spec      frequent_words(alpha=2, letters=6)
// source    Hsieh et al. 2024, arXiv:2404.06654
// departs   `answers` are in the order of their ranks; so few tokens that ranks 4 and 5 come equally often are refused
#include "mneme/core/registry.h"
#include "mneme/tasks/haystack.h"
#include "mneme/tasks/recall.h"
#include "mneme/tasks/ruler_parts.h"
#include "mneme/tasks/string_match.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>

namespace mneme::tasks::frequent_words {
namespace {

constexpr std::size_t kAsked = 3, kTokensPerWord = 50, kFewestWords = 12;
constexpr std::string_view kIgnored = "...";
constexpr std::string_view kTask =
    "Read the following coded text and track the frequency of each coded word. Find the three "
    "most frequently appeared coded words. ";
constexpr std::string_view kQuestion =
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text? Answer: According to the coded text "
    "above, the three most frequently appeared words are:";

}  // namespace

class FrequentWords final : public RecallTask {
 public:
  struct Options {
    double alpha = 2;
    std::int64_t letters = 6;
  };
  static void describe(Describe& d, Options& o) {
    d("alpha", o.alpha, within(1.1, 8), "how fast frequencies fall with the rank");
    d("letters", o.letters, within(4, 16), "letters of a coded word");
  }
  FrequentWords(const Options& o, const std::filesystem::path& /*data*/)
      : o_(o), zeta_(std::riemann_zeta(o.alpha)) {}

  [[nodiscard]] RecallSample draw(const RecallRequest& request, const Tokenizer& tokenizer,
                                  Generator& generator) const override {
    const auto size =
        std::max(kFewestWords, static_cast<std::size_t>(std::max<std::int64_t>(0, request.tokens)) /
                                   kTokensPerWord);
    auto words = coded_words(size, generator);
    words[0] = kIgnored;
    std::vector<std::int64_t> costs;
    for (const auto& word : words)
      costs.push_back(static_cast<std::int64_t>(tokenizer.encode(" " + word).size()));

    RecallSample out;
    out.question = kQuestion;
    const auto around = static_cast<std::int64_t>(
        tokenizer.encode(std::string(kTask) + std::string(kQuestion)).size());
    const auto cost = [&](std::int64_t n) {
      auto all = around;
      for (std::size_t k = 0; k < size; ++k) all += times(n, k) * costs[k];
      return all;
    };
    // Every word of n takes a token at least.
    std::int64_t least = 0, most = std::max<std::int64_t>(1, 4 * request.tokens);
    while (least < most) {
      const auto middle = (least + most + 1) / 2;
      if (cost(middle) <= request.tokens)
        least = middle;
      else
        most = middle - 1;
    }
    // Tokens may join or part where words meet, so what counts is the text as a whole.
    std::vector<std::size_t> ranks;
    for (auto n = least;; n -= std::max<std::int64_t>(1, n / 256)) {
      if (times(n, kAsked) <= times(n, kAsked + 1)) {
        while (times(n, kAsked) <= times(n, kAsked + 1)) ++n;
        refuse_tokens("frequent_words", request.tokens, cost(n));
      }
      ranks.clear();
      for (std::size_t k = 0; k < size; ++k)
        ranks.insert(ranks.end(), static_cast<std::size_t>(times(n, k)), k);
      auto kept = generator;
      reorder(ranks, kept);
      out.context = kTask;
      for (std::size_t i = 0; i < ranks.size(); ++i) {
        if (i > 0) out.context += ' ';
        out.context += words[ranks[i]];
      }
      const auto all =
          static_cast<std::int64_t>(tokenizer.encode(out.context + out.question).size());
      if (all <= request.tokens) {
        generator = kept;
        break;
      }
    }
    auto at = static_cast<std::int64_t>(kTask.size());
    for (const auto k : ranks) {
      const auto end = at + static_cast<std::int64_t>(words[k].size());
      if (k >= 1 && k <= kAsked) out.evidence.emplace_back(at, end);
      at = end + 1;
    }

    out.answers = {words.begin() + 1, words.begin() + 1 + kAsked};
    out.candidates = {" " + listed(out.answers)};
    while (out.candidates.size() < kRulerCandidates) {
      // Words of the text that come nearly as often, at least one of them a wrong one.
      std::vector<std::string> wrong;
      bool right = true;
      auto drawn = distinct(generator, kFewestWords - 1, kAsked);
      std::sort(drawn.begin(), drawn.end());
      for (const auto i : drawn) {
        right = right && i < kAsked;
        wrong.push_back(words[i + 1]);
      }
      auto text = " " + listed(wrong);
      if (!right &&
          std::find(out.candidates.begin(), out.candidates.end(), text) == out.candidates.end())
        out.candidates.push_back(std::move(text));
    }
    return out;
  }

  [[nodiscard]] double score(std::string_view said, const RecallSample& sample) const override {
    return string_match_all(said, sample.answers);
  }
  [[nodiscard]] std::int64_t answer_tokens() const override { return 50; }

 private:
  /// Different words of random letters.
  [[nodiscard]] std::vector<std::string> coded_words(std::size_t count,
                                                     Generator& generator) const {
    return new_items(count, {}, [&] {
      std::string word;
      while (static_cast<std::int64_t>(word.size()) < o_.letters)
        word += static_cast<char>('a' + below(generator, 26));
      return word;
    });
  }

  /// How often the word of rank k + 1 comes among n.
  [[nodiscard]] std::int64_t times(std::int64_t n, std::size_t k) const {
    return static_cast<std::int64_t>(static_cast<double>(n) *
                                     std::pow(static_cast<double>(k + 1), -o_.alpha) / zeta_);
  }

  Options o_;
  double zeta_;
};

void enrol(Registry& r) {
  r.add<RecallTask, FrequentWords>(
      "frequent_words", "RULER: the three most frequent words of a coded text", "ruler-2024");
}

}  // namespace mneme::tasks::frequent_words
