// min_p: only tokens that are at least p times as likely as the most likely one stay.
//
//   l_i <- -inf where l_i < max l + ln p                 l: [V] logits
//
// spec      min_p(p=0.05)
// cost      O(V)
// source    Nguyen et al. 2024, arXiv:2407.01082
// departs   nothing
#include "mneme/core/registry.h"
#include "mneme/decode/logits_stage.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mneme::decode::min_p {

class MinP final : public LogitsStage {
 public:
  struct Options {
    double p = 0.05;
  };
  static void describe(Describe& d, Options& o) {
    d("p", o.p, within(0, 1), "share of the largest probability that a token needs; 0: none");
  }
  explicit MinP(const Options& o) : below_largest_(std::log(o.p)) {}  // minus infinity for p = 0

  void apply(std::span<float> logits, std::span<const std::int32_t>) const override {
    if (logits.empty()) return;
    const auto least =
        static_cast<float>(*std::max_element(logits.begin(), logits.end()) + below_largest_);
    for (auto& logit : logits) {
      if (logit < least) logit = -std::numeric_limits<float>::infinity();
    }
  }

 private:
  double below_largest_;
};

void enrol(Registry& r) {
  r.add<LogitsStage, MinP>("min_p", "keeps tokens not much less likely than the most likely");
}

}  // namespace mneme::decode::min_p
