// repetition_penalty: makes tokens that stand in the last text less likely, once each.
//
//   l_i <- l_i / penalty if l_i > 0 else l_i * penalty   for every i in the last `window` ids of the history; l: [V]
//
// spec      repetition_penalty(penalty=1.1, window=64)
// cost      O(W log W) for a window of W ids
// source    Keskar et al. 2019, arXiv:1909.05858
// departs   the paper and Hugging Face look at the whole history (window=0), llama.cpp at the last 64 ids
#include "mneme/core/registry.h"
#include "mneme/decode/logits_stage.h"

#include <algorithm>
#include <vector>

namespace mneme::decode::repetition_penalty {

class RepetitionPenalty final : public LogitsStage {
 public:
  struct Options {
    double penalty = 1.1;
    std::int64_t window = 64;
  };
  static void describe(Describe& d, Options& o) {
    d("penalty", o.penalty, above(0), "factor against repetition; 1: none, below 1: for it");
    d("window", o.window, at_least(0), "last ids looked at; 0: all");
  }
  explicit RepetitionPenalty(const Options& o)
      : penalty_(static_cast<float>(o.penalty)), window_(static_cast<std::size_t>(o.window)) {}

  void apply(std::span<float> logits, std::span<const std::int32_t> history) const override {
    if (window_ != 0 && history.size() > window_) history = history.last(window_);
    static thread_local std::vector<std::int32_t>
        seen;  // kept, so that a token costs no allocation
    seen.assign(history.begin(), history.end());
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    for (const auto id : seen) {
      if (id < 0 || static_cast<std::size_t>(id) >= logits.size()) continue;
      auto& logit = logits[static_cast<std::size_t>(id)];
      logit = logit > 0 ? logit / penalty_ : logit * penalty_;
    }
  }

 private:
  float penalty_;
  std::size_t window_;
};

void enrol(Registry& r) {
  r.add<LogitsStage, RepetitionPenalty>("repetition_penalty",
                                        "makes tokens of the last text less likely");
}

}  // namespace mneme::decode::repetition_penalty
