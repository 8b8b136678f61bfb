// evaluator_heads: how much each head looks at the evidence when a question about it has been read.
//
//   a^h       = the last row of head h's attention, over a text with a needle in it and a question about it
//   score_h   = mean over needles of sum_{j in the needle's sentence} a^h_j
//   layer     = argmax_l sum_h score_lh: its best heads are the evaluators
//
// spec      evaluator_heads(needles=40, tokens=512)
// holds     "evaluator_heads" [L,Hq]: the score of every query head, 0 to 1
// cost      one pass over each needle's text, at five depths
// needs     softmax attention
// source    Fei et al. 2025, arXiv:2501.12959
// departs   needles come from two sets that share no word, by turns
// card      papers/ehpc-2025.toml
#include "mneme/core/progress.h"
#include "mneme/core/registry.h"
#include "mneme/probes/attention.h"
#include "mneme/probes/calibration.h"
#include "mneme/probes/needles.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <fmt/format.h>

namespace mneme::probes::evaluator_heads {

constexpr std::array<double, 5> kDepths = {0, 0.25, 0.5, 0.75, 1};

class EvaluatorHeads final : public Calibration {
 public:
  struct Options {
    std::int64_t needles = 40, tokens = 512;
  };
  static void describe(Describe& d, Options& o) {
    d("needles", o.needles, at_least(1), "texts to look at");
    d("tokens", o.tokens, at_least(128), "of each text");
  }
  explicit EvaluatorHeads(const Options& o) : o_(o) {}

  [[nodiscard]] Calibrated run(const LanguageModel& model, const CalibrationText& text,
                               const std::function<void()>& between) const override {
    const auto shape = attention_of(model);
    const auto context = model.model->shape().context;
    const auto length = context > 0 ? std::min(o_.tokens, context) : o_.tokens;
    const auto filler = beginning(model, text, kLeastFiller, kMostFiller);
    auto sum = at::zeros({shape.layers, shape.heads}, at::kDouble);
    Progress progress("measuring evaluator_heads", o_.needles, "texts");
    for (std::int64_t i = 0; i < o_.needles; ++i) {
      between();
      const auto depth = kDepths.at(static_cast<std::size_t>(i / 2) % kDepths.size());
      const auto from = i * static_cast<std::int64_t>(filler.size()) / o_.needles;
      auto prompt = needle_prompt(model, filler, draw_needle(static_cast<int>(i % 2), i / 2), from,
                                  length, depth);
      // The answer is not written yet.
      prompt.ids.resize(static_cast<std::size_t>(prompt.asked));
      watch_rows(model, shape, prompt.ids, prompt.asked - 1, 1,
                 [&](std::int64_t layer, const at::Tensor& logits) {
                   sum[layer] +=
                       evidence_share(logits.select(1, 0), prompt.needle, prompt.needle_tokens);
                 });
      progress.advance(1);
    }
    progress.finish();
    const auto scores = sum / static_cast<double>(o_.needles), layers = scores.sum(1);
    const auto best = layers.argmax().item<std::int64_t>();
    Calibrated out;
    out.numbers["evaluator_heads"] = scores.to(at::kFloat);
    out.figures.emplace_back("layer that looks at the evidence most", static_cast<double>(best));
    out.figures.emplace_back("its heads' mean score", scores[best].mean().item<double>());
    out.figures.emplace_back("highest score of all heads", scores.max().item<double>());
    out.by_layer["sum of scores"] = per_layer(layers);
    out.how = fmt::format("{} needles in texts of {} tokens", o_.needles, length);
    return out;
  }

 private:
  static constexpr std::int64_t kLeastFiller = 128, kMostFiller = 16384;
  Options o_;
};

void enrol(Registry& r) {
  r.add<Calibration, EvaluatorHeads>(
      "evaluator_heads", "how much each head looks at the evidence of a question", "ehpc-2025");
}

}  // namespace mneme::probes::evaluator_heads
