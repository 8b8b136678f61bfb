// retrieval_heads: whether few heads copy answers out of a text, the same ones whatever is asked, and whether the answers are
// lost without them.
//
//   scores    of every head by the calibration retrieval_heads, over two sets of needles that share no word
//   masked    the `heads` with the highest scores read nothing, and so do as many others, drawn `draws` times; each time the
//             right answer is ranked among wrong ones behind the same texts
//
// spec      retrieval_heads(needles=60, longest=2048, tokens=1024, samples=30, heads=14, draws=5)
// needs     books in the data folder; where there are none the text is made up
// cost      a pass over each needle's text, and (2 + draws) samples passes of `tokens`
// source    Wu et al. 2024, arXiv:2404.15574
// card      papers/retrieval-heads-2024.toml
#include "mneme/core/progress.h"
#include "mneme/core/registry.h"
#include "mneme/probes/head_mask.h"
#include "mneme/tasks/haystack.h"

#include <ATen/ATen.h>

#include "bench/kv/rows.h"
#include "bench/probes/needle_set.h"
#include "bench/suite.h"
#include <algorithm>
#include <cstdint>
#include <fmt/format.h>
#include <string>
#include <vector>

namespace mneme::suites::retrieval_heads {

using namespace mneme::bench;

// A head is a retrieval head from this score on.
constexpr double kRetrieves = 0.1;

class RetrievalHeads final : public Suite {
 public:
  struct Options {
    std::int64_t needles = 60, longest = 2048, tokens = 1024, samples = 30, heads = 14, draws = 5;
    std::string task = "needle";
  };
  static void describe(Describe& d, Options& o) {
    d("needles", o.needles, at_least(2), "texts that heads are scored on, half of each set");
    d("longest", o.longest, at_least(1024), "tokens of the longest of them");
    d("tokens", o.tokens, at_least(64), "of a text whose answer is ranked");
    d("samples", o.samples, at_least(1), "such texts");
    d("heads", o.heads, at_least(1), "that are masked at once");
    d("draws", o.draws, at_least(1), "times that other heads are drawn");
    d("task", o.task, "recall task of the texts whose answers are ranked, a spec");
  }
  explicit RetrievalHeads(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {"mneme bench retrieval_heads --needles 60 --heads 14"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    const auto model = load_model(setup, {});
    const auto found =
        registry()
            .make<Calibration>(
                fmt::format("retrieval_heads(needles={}, tokens={})", o_.needles, o_.longest))
            ->run(*model, filler_text(*model, setup.data, setup.seed), setup.between);
    const auto& scores = found.numbers.at("retrieval_heads");  // [L,Hq]
    const auto order = heads_by_score(scores);
    if (2 * o_.heads > scores.numel()) {
      throw Error(Errc::usage,
                  fmt::format("--heads: {} has {} heads: {} and as many others cannot be masked",
                              model->name, scores.numel(), o_.heads));
    }
    const auto texts = needle_texts(*model, setup.data, o_.task, o_.tokens, o_.samples, setup.seed);
    Progress progress("asking", o_.samples * (2 + o_.draws), "answers");
    const auto accuracy = [&](const std::vector<HeadPlace>& masked) {
      const MaskedHeads without(*model, masked);
      double right = 0;
      for (const auto& text : texts) {
        setup.between();
        right += ranked_behind(*model, text.prompt(), text).right;
        progress.advance(1);
      }
      return right / static_cast<double>(texts.size());
    };
    const auto n = static_cast<std::ptrdiff_t>(o_.heads);
    const double none = accuracy({}), top = accuracy({order.begin(), order.begin() + n});
    const std::vector<HeadPlace> others(order.begin() + n, order.end());
    std::vector<double> random;
    for (std::int64_t draw = 0; draw < o_.draws; ++draw) {
      auto chance = Generator(setup.seed).split(static_cast<std::uint64_t>(draw));
      std::vector<HeadPlace> masked;
      for (const auto i :
           tasks::distinct(chance, others.size(), static_cast<std::size_t>(o_.heads)))
        masked.push_back(others[i]);
      random.push_back(accuracy(masked));
    }
    progress.finish();
    return report(*model, scores, order, found, none, top, random);
  }

 private:
  SuiteReport report(const LanguageModel& model, const at::Tensor& scores,
                     const std::vector<HeadPlace>& order, const Calibrated& found, double none,
                     double top, const std::vector<double>& random) const {
    double mean = 0;
    for (const auto x : random) mean += x / static_cast<double>(random.size());
    const auto share = (scores >= kRetrieves).to(at::kDouble).mean().item<double>();
    SuiteReport out;
    auto& f = out.figures;
    f = {{"model", model.name},
         {"heads", scores.numel()},
         {"masked_heads", o_.heads},
         {"share_of_retrieval_heads", share},
         {"ranked_right",
          {{"none", none}, {"top", top}, {"random", random}, {"random_mean", mean}}}};
    for (const auto& [name, value] : found.figures) {
      if (name.starts_with("rank correlation")) f["rank_correlation"] = value;
      f["calibration"][name] = value;
    }
    f["top_heads"] = nlohmann::json::array();
    std::string table = "| layer | head | score |\n|--:|--:|--:|\n";
    for (std::size_t i = 0; i < static_cast<std::size_t>(o_.heads); ++i) {
      const auto [layer, head] = order[i];
      const auto score = scores[layer][head].item<double>();
      f["top_heads"].push_back({{"layer", layer}, {"head", head}, {"score", score}});
      table += fmt::format("| {} | {} | {:.3f} |\n", layer, head, score);
    }
    out.text = fmt::format(
        "{}: {} of {} heads score {} or more; rank correlation between two sets of needles {:.3f} "
        "({}).\n\n"
        "| masked | ranked right, % |\n|---|--:|\n| none | {:.1f} |\n| the {} with the highest "
        "scores | {:.1f} |\n",
        model.name, static_cast<std::int64_t>(share * static_cast<double>(scores.numel()) + 0.5),
        scores.numel(), kRetrieves, f.value("rank_correlation", 0.0), found.how, 100 * none,
        o_.heads, 100 * top);
    for (const auto x : random)
      out.text += fmt::format("| {} others | {:.1f} |\n", o_.heads, 100 * x);
    out.text +=
        fmt::format("\n{} texts of {} tokens ({}).\n\n{}", o_.samples, o_.tokens, o_.task, table);
    return out;
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<Suite, RetrievalHeads>("retrieval_heads",
                               "which heads copy answers, and what is recalled without them",
                               "retrieval-heads-2024");
}

}  // namespace mneme::suites::retrieval_heads
