// top_p: only the smallest set of most likely tokens whose probability reaches p stays (nucleus sampling).
//
//   q = softmax(l)                                       l, q: [V]
//   l_i <- -inf where the q of all tokens before i, most likely first, reach p
//
// spec      top_p(p=0.9)
// cost      O(V): a quickselect by mass, nothing is sorted
// source    Holtzman et al. 2020, arXiv:1904.09751
// departs   equal logits stand in the order of their ids
#include "mneme/core/registry.h"
#include "mneme/decode/distribution.h"
#include "mneme/decode/logits_stage.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace mneme::decode::top_p {

class TopP final : public LogitsStage {
 public:
  struct Options {
    double p = 0.9;
  };
  static void describe(Describe& d, Options& o) {
    d("p", o.p, within(0, 1), "probability to reach; 1: all tokens, 0: the most likely one");
  }
  explicit TopP(const Options& o) : p_(o.p) {}

  void apply(std::span<float> logits, std::span<const std::int32_t>) const override {
    if (p_ >= 1 || logits.empty()) return;
    struct Token {
      double weight;
      float logit;
      std::int32_t id;
    };
    static thread_local std::vector<Token> tokens;  // kept, so that a token costs no allocation
    tokens.clear();
    const float most = logits[index_of_largest(logits)];
    const double total = log_sum_exp(logits, most);
    // Even all V tokens of a probability below (1 - p) / V would not be missed: they go without being looked at. Half of
    // that leaves room for rounding.
    const auto hopeless =
        static_cast<float>(total + std::log(0.5 * (1 - p_) / static_cast<double>(logits.size())));
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] < hopeless && logits[i] < most) {
        logits[i] = -std::numeric_limits<float>::infinity();
      } else if (logits[i] != -std::numeric_limits<float>::infinity()) {
        tokens.push_back({std::exp(static_cast<double>(logits[i]) - total), logits[i],
                          static_cast<std::int32_t>(i)});
      }
    }
    const auto likelier = [](const Token& a, const Token& b) {
      return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
    };
    // Tokens before `low` stay and weigh `before`; the token that would stand at `low` stays; those from `high` on go.
    auto low = tokens.begin(), high = tokens.end();
    double before = 0;
    while (high - low > 1) {
      const auto middle = low + (high - low) / 2;
      std::nth_element(low, middle, high, likelier);
      double mass = 0;
      for (auto it = low; it != middle; ++it) mass += it->weight;
      if (before + mass < p_) {
        before += mass;
        low = middle;
      } else {
        high = middle;
      }
    }
    for (auto it = high; it != tokens.end(); ++it) {
      logits[static_cast<std::size_t>(it->id)] = -std::numeric_limits<float>::infinity();
    }
  }

 private:
  double p_;
};

void enrol(Registry& r) {
  r.add<LogitsStage, TopP>("top_p", "keeps the most likely tokens that reach a probability");
}

}  // namespace mneme::decode::top_p
