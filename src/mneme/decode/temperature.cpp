// temperature: flattens or sharpens the distribution over the next token.
//
//   l_i <- l_i / value                                   l: [V] logits
//   value = 0: all but the first largest l_i <- -inf     the limit, with ties given to the smallest id
//
// spec      temperature(value=0.8)
// cost      O(V)
// source    Ackley, Hinton & Sejnowski 1985, "A learning algorithm for Boltzmann machines"
// departs   Hugging Face refuses value = 0; llama.cpp takes it as greedy, as here
#include "mneme/core/registry.h"
#include "mneme/decode/logits_stage.h"

#include <algorithm>
#include <limits>

namespace mneme::decode::temperature {

class Temperature final : public LogitsStage {
 public:
  struct Options {
    double value = 0.8;
  };
  static void describe(Describe& d, Options& o) {
    d("value", o.value, at_least(0), "what logits are divided by; 0 (or below 1e-6): greedy");
  }
  explicit Temperature(const Options& o)
      : value_(o.value < 1e-6 ? 0.f : static_cast<float>(o.value)) {}  // smaller overflows

  void apply(std::span<float> logits, std::span<const std::int32_t>) const override {
    if (value_ > 0) {
      for (auto& logit : logits) logit /= value_;
      return;
    }
    const auto best = std::max_element(logits.begin(), logits.end());
    for (auto it = logits.begin(); it != logits.end(); ++it) {
      if (it != best) *it = -std::numeric_limits<float>::infinity();
    }
  }

 private:
  float value_;
};

void enrol(Registry& r) {
  r.add<LogitsStage, Temperature>("temperature", "divides logits by a number; 0 is greedy");
}

}  // namespace mneme::decode::temperature
