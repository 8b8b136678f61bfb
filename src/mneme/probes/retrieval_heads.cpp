// retrieval_heads: how much of an answer each head copies out of the text, token by token, while it is written.
//
//   needle    a sentence with the answer k, hidden in running text; then a question, then k itself, token by token
//   g_h       = { w in k : when w is written, argmax_j a^h_tj is a place of w in the needle's k },  j over all keys
//   score_h   = mean over needles of |g_h & k| / |k|
//
// spec      retrieval_heads(needles=60, tokens=2048)
// holds     "retrieval_heads" [L,Hq]: the score of every query head, 0 to 1
// cost      one pass over each needle's text, tokens / 8 to `tokens` long, five depths
// needs     softmax attention
// source    Wu et al. 2024, arXiv:2404.15574
// departs   the answer is given, not generated: a small model writes wrong ones, and a wrong token cannot be copied. The
//           published code adds 1 / |k| a step where this counts the set; both shares are reported. Needles come from two
//           sets that share no word, by turns, and the rank correlation between them is reported
// card      papers/retrieval-heads-2024.toml
#include "mneme/core/progress.h"
#include "mneme/core/registry.h"
#include "mneme/probes/attention.h"
#include "mneme/probes/calibration.h"
#include "mneme/probes/needles.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <fmt/format.h>

namespace mneme::probes::retrieval_heads {

// A head is one from this score on.
constexpr double kRetrieves = 0.1;
constexpr std::array<double, 5> kDepths = {0, 0.25, 0.5, 0.75, 1};
constexpr std::array<std::int64_t, 4> kParts = {8, 4, 2, 1};

class RetrievalHeads final : public Calibration {
 public:
  struct Options {
    std::int64_t needles = 60, tokens = 2048;
  };
  static void describe(Describe& d, Options& o) {
    d("needles", o.needles, at_least(2), "texts to look at, half of them from each set of needles");
    d("tokens", o.tokens, at_least(1024), "of the longest text; others are a half to an eighth");
  }
  explicit RetrievalHeads(const Options& o) : o_(o) {}

  [[nodiscard]] Calibrated run(const LanguageModel& model, const CalibrationText& text,
                               const std::function<void()>& between) const override {
    const auto shape = attention_of(model);
    const auto context = model.model->shape().context;
    const auto longest = context > 0 ? std::min(o_.tokens, context) : o_.tokens;
    const auto filler = beginning(model, text, kLeastFiller, kMostFiller);
    std::array<at::Tensor, 2> sums, steps;
    std::array<std::int64_t, 2> counts{};
    for (auto* all : {&sums, &steps}) {
      for (auto& one : *all) one = at::zeros({shape.layers, shape.heads}, at::kDouble);
    }
    Progress progress("measuring retrieval_heads", o_.needles, "texts");
    for (std::int64_t i = 0; i < o_.needles; ++i) {
      between();
      const auto set = static_cast<std::size_t>(i % 2);
      const auto index = i / 2, parts = static_cast<std::int64_t>(kParts.size());
      const auto length = longest / kParts.at(static_cast<std::size_t>(index % parts));
      const auto depth = kDepths.at(static_cast<std::size_t>(index / parts) % kDepths.size());
      // Texts begin at places of their own as far as the filler allows.
      const auto from = index * static_cast<std::int64_t>(filler.size()) / o_.needles;
      const auto prompt = needle_prompt(model, filler, draw_needle(static_cast<int>(set), index),
                                        from, length, depth);
      const std::span ids(prompt.ids);
      const auto answer = ids.subspan(static_cast<std::size_t>(prompt.answer),
                                      static_cast<std::size_t>(prompt.answer_tokens));
      watch_rows(model, shape, prompt.ids, prompt.asked - 1, prompt.answer_tokens,
                 [&](std::int64_t layer, const at::Tensor& logits) {
                   const auto found = copied(logits, ids, prompt.answer, answer);
                   sums.at(set)[layer] += found.tokens;
                   steps.at(set)[layer] += found.steps;
                 });
      ++counts.at(set);
      progress.advance(1);
    }
    progress.finish();
    const auto n = static_cast<double>(o_.needles);
    const auto scores = (sums[0] + sums[1]) / n, by_step = (steps[0] + steps[1]) / n;
    const auto share = [](const at::Tensor& x) {
      return (x >= kRetrieves).to(at::kDouble).mean().item<double>();
    };
    Calibrated out;
    out.numbers["retrieval_heads"] = scores.to(at::kFloat);
    out.figures.emplace_back("share of heads that score 0.1 or more", share(scores));
    out.figures.emplace_back("the same, counted by steps", share(by_step));
    out.figures.emplace_back("highest score", scores.max().item<double>());
    out.figures.emplace_back("rank correlation between two sets of needles",
                             rank_correlation(sums[0], sums[1]));
    out.by_layer["highest score"] = per_layer(scores.amax(1));
    out.how = fmt::format("{} needles, {} of each set, in texts of {} to {} tokens", o_.needles,
                          counts[0], longest / kParts.front(), longest);
    return out;
  }

 private:
  static constexpr std::int64_t kLeastFiller = 128, kMostFiller = 16384;
  Options o_;
};

void enrol(Registry& r) {
  r.add<Calibration, RetrievalHeads>("retrieval_heads",
                                     "how much of an answer each head copies out of the text",
                                     "retrieval-heads-2024");
}

}  // namespace mneme::probes::retrieval_heads
