// prompt_compression: whether a question is still answered from a quarter of its prompt, by how that quarter is chosen.
//
//   a fact stands in a text, a question behind it; the prompt is cut to `keep` of its tokens, always with its first and its
//   last `recent` ones, and read as a prompt of its own; the right answer is ranked among wrong ones
//
//   full        all tokens
//   evaluators  by the `heads` evaluator heads of one layer (probes/ehpc.h)
//   layer       by all heads of that layer
//   random      drawn
//   last        the last ones
//
// Seconds are of reading, with what choosing took.
//
// spec      prompt_compression(needles=40, search=512, tokens=1024, samples=60, keep=0.25, heads=3, recent=16, pool=32)
// needs     books in the data folder; where there are none the text is made up
// cost      a pass over each needle's text; `samples` passes of `tokens` through all layers and two through a few, and four
//           of what is kept
// source    Fei et al. 2025, arXiv:2501.12959
// card      papers/ehpc-2025.toml
#include "mneme/core/progress.h"
#include "mneme/core/registry.h"
#include "mneme/probes/ehpc.h"
#include "mneme/tasks/haystack.h"

#include <ATen/ATen.h>

#include "bench/kv/rows.h"
#include "bench/probes/needle_set.h"
#include "bench/suite.h"
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <fmt/format.h>
#include <string>
#include <vector>

namespace mneme::suites::prompt_compression {

using namespace mneme::bench;

class PromptCompression final : public Suite {
 public:
  struct Options {
    std::int64_t needles = 40, search = 512, tokens = 1024, samples = 60, heads = 3, recent = 16,
                 pool = 32;
    double keep = 0.25;
    std::string task = "needle";
  };
  static void describe(Describe& d, Options& o) {
    d("needles", o.needles, at_least(1), "texts on which evaluator heads are found");
    d("search", o.search, at_least(128), "tokens of each of them");
    d("tokens", o.tokens, at_least(64), "of a prompt that is cut");
    d("samples", o.samples, at_least(1), "such prompts");
    d("keep", o.keep, above(0), "share of a prompt's tokens that is kept");
    d("heads", o.heads, at_least(1), "evaluator heads");
    d("recent", o.recent, at_least(1), "last tokens, which look at the others and are kept");
    d("pool", o.pool, at_least(0), "neighbours that a token's score is the mean of");
    d("task", o.task, "recall task of the prompts, a spec");
  }
  explicit PromptCompression(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {"mneme bench prompt_compression --keep 0.25 --samples 20"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    const auto model = load_model(setup, {});
    const auto found =
        registry()
            .make<Calibration>(
                fmt::format("evaluator_heads(needles={}, tokens={})", o_.needles, o_.search))
            ->run(*model, filler_text(*model, setup.data, setup.seed), setup.between);
    const auto& scores = found.numbers.at("evaluator_heads");
    const auto judges = evaluators(scores, o_.heads), layer = evaluators(scores, scores.size(1));
    const EhpcOptions options{o_.recent, o_.pool};
    const PromptCompressor by_judges(*model, judges, options), by_layer(*model, layer, options);
    const auto texts = needle_texts(*model, setup.data, o_.task, o_.tokens, o_.samples, setup.seed);
    Progress progress("asking", o_.samples, "prompts");
    for (std::size_t i = 0; i < texts.size(); ++i) {
      setup.between();
      const auto prompt = texts[i].prompt();
      const auto n = static_cast<std::int64_t>(prompt.size());
      const auto budget = std::max<std::int64_t>(
          static_cast<std::int64_t>(o_.keep * static_cast<double>(n)), o_.recent + 1);
      auto chance = Generator(setup.seed).split(i).split(1);
      std::vector<double> drawn;
      for (std::int64_t j = 0; j < n; ++j) drawn.push_back(chance.uniform());
      const auto ask = [&](Way way, const auto& cut) {
        const auto begin = std::chrono::steady_clock::now();
        const auto kept = cut();
        const std::chrono::duration<double> choosing = std::chrono::steady_clock::now() - begin;
        const auto ranked = ranked_behind(*model, kept, texts[i]);
        auto& of = outcomes_.at(static_cast<std::size_t>(way));
        of.right += ranked.right;
        of.tokens += static_cast<double>(kept.size());
        of.seconds += choosing.count() + ranked.seconds;
      };
      const auto by_scores = [&](const at::Tensor& score) {
        std::vector<std::int32_t> out;
        for (const auto j : kept_places(score, budget, o_.recent))
          out.push_back(prompt[static_cast<std::size_t>(j)]);
        return out;
      };
      ask(Way::full, [&] { return prompt; });
      ask(Way::evaluators, [&] { return by_judges.compress(prompt, budget); });
      ask(Way::layer, [&] { return by_layer.compress(prompt, budget); });
      ask(Way::random, [&] { return by_scores(at::tensor(drawn, at::kDouble)); });
      ask(Way::last, [&] { return by_scores(at::arange(n, at::kDouble)); });
      progress.advance(1);
    }
    progress.finish();
    return report(*model, judges, found.how);
  }

 private:
  enum class Way : std::uint8_t { full, evaluators, layer, random, last };
  static constexpr std::array<const char*, 5> kNames = {"full", "evaluators", "layer", "random",
                                                        "last"};
  struct Outcome {
    double right = 0, tokens = 0, seconds = 0;  // sums over prompts
  };

  SuiteReport report(const LanguageModel& model, const EvaluatorHeads& judges,
                     const std::string& how) const {
    const auto layers = model.model->shape().layers;
    const auto n = static_cast<double>(o_.samples);
    SuiteReport out;
    auto& f = out.figures;
    f = {{"model", model.name},
         {"layer", judges.layer},
         {"heads", judges.heads},
         {"layers_run", judges.layer + 1},
         {"share_of_layers_run",
          static_cast<double>(judges.layer + 1) / static_cast<double>(layers)},
         {"samples", o_.samples}};
    out.text = fmt::format(
        "{}: evaluator heads {} of layer {} ({}).\n\n| tokens kept | ranked right, % | tokens | "
        "seconds a prompt |\n|---|--:|--:|--:|\n",
        model.name, fmt::join(judges.heads, ", "), judges.layer, how);
    for (std::size_t w = 0; w < kNames.size(); ++w) {
      const auto& of = outcomes_.at(w);
      f[kNames.at(w)] = {
          {"ranked_right", of.right / n}, {"tokens", of.tokens / n}, {"seconds", of.seconds / n}};
      out.text += fmt::format("| {} | {:.1f} | {:.0f} | {:.3f} |\n", kNames.at(w),
                              100 * of.right / n, of.tokens / n, of.seconds / n);
    }
    f["seconds_of_full"] = outcomes_[1].seconds / outcomes_[0].seconds;
    out.text += fmt::format(
        "\n{} prompts of {} tokens ({}); cut by evaluators and read in {:.2f} of "
        "the time that all of it takes, with {} of {} layers run.\n",
        o_.samples, o_.tokens, o_.task, f["seconds_of_full"].get<double>(), judges.layer + 1,
        layers);
    return out;
  }

  Options o_;
  std::array<Outcome, kNames.size()> outcomes_{};
};

void enrol(Registry& r) {
  r.add<Suite, PromptCompression>("prompt_compression",
                                  "what is answered from a part of a prompt, by how it is chosen",
                                  "ehpc-2025");
}

}  // namespace mneme::suites::prompt_compression
