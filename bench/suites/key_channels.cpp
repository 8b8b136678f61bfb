// key_channels: what it costs to hold only some of the numbers of the keys that an evicting pipeline has kept.
//
//   behind contexts cut by `evict`, with and without `think`: NLL of what follows, bytes, and needles ranked right, on the
//   longest texts on which the whole cache ranks at least 0.8 of them right
//   nll_increase(m) = NLL(m) - NLL(evict alone);  saved(m) = 1 - bytes(m) / bytes(evict alone)
//
// spec      key_channels(evict="snapkv | keep(ratio=0.25, when=end)", tokens=1024, continuation=64, texts=20, samples=8)
// needs     books in the data folder; where there are none texts are made up
// cost      one reading of each context, and one of each text with a needle
// source    Xu et al. 2025, arXiv:2407.21018
// card      papers/think-2025.toml
#include "mneme/core/registry.h"

#include "bench/kv/calibrated.h"
#include "bench/kv/forced.h"
#include "bench/kv/known_length.h"
#include "bench/kv/rows.h"
#include "bench/kv/texts.h"
#include "bench/list.h"
#include "bench/suite.h"
#include <cstdint>
#include <fmt/format.h>
#include <string>
#include <utility>
#include <vector>

namespace mneme::suites::key_channels {

using namespace mneme::bench;

class KeyChannels final : public Suite {
 public:
  struct Options {
    std::string evict = "snapkv | keep(ratio=0.25, when=end)", lengths = "256,512,1024,2048",
                task = "needle";
    std::int64_t tokens = 1024, continuation = 64, texts = 20, samples = 8;
  };
  static void describe(Describe& d, Options& o) {
    d("evict", o.evict, "what cuts the contexts, a KV spec");
    d("tokens", o.tokens, at_least(1), "tokens of a context");
    d("continuation", o.continuation, at_least(1), "predictions behind each");
    d("texts", o.texts, at_least(1), "contexts");
    d("lengths", o.lengths, "tokens of texts with a needle, one number or several");
    d("samples", o.samples, at_least(1), "needles at each of five depths");
    d("task", o.task, "recall task, a spec");
  }
  explicit KeyChannels(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {"mneme bench key_channels --evict 'snapkv | keep(ratio=0.25, when=end)' --texts 4"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    const auto lengths = listed_numbers("lengths", o_.lengths, 1);
    const std::vector<std::pair<std::string, std::string>> wanted = {
        {"evict", o_.evict},
        {"lambda_25", o_.evict + " | think(lambda=0.25)"},
        {"lambda_40", o_.evict + " | think(lambda=0.4)"},
        {"lambda_50", o_.evict + " | think(lambda=0.5)"},
        {"random_40", o_.evict + " | think(lambda=0.4, by=random)"},
        {"keys_40", o_.evict + " | think(lambda=0.4, by=keys)"}};
    std::vector<Pipeline> pipelines = {{std::string(kFullCache), nullptr}};
    for (const auto& [name, spec] : wanted) pipelines.push_back(calibrated_pipeline(spec, nullptr));
    const auto model = load_model(setup, {});
    std::vector<std::vector<std::int32_t>> texts;
    for (auto& sample : sample_texts(setup.data, "test", *model->tokenizer,
                                     o_.tokens + o_.continuation + 1, o_.texts, setup.seed))
      texts.push_back(std::move(sample.ids));
    const auto behind =
        measure_continuations(*model, pipelines, texts, o_.tokens, 0, {512, false, setup.between});
    RecallSettings settings;
    settings.samples = o_.samples;
    settings.generate = false;
    settings.seed = setup.seed;
    settings.context.between = setup.between;
    const auto needles =
        rank_at_known_length(*model, pipelines, o_.task, lengths, setup.data, settings);
    SuiteReport out;
    out.figures = {{"suite", "key_channels"}, {"options", options_json<KeyChannels>(o_)},
                   {"model", model->name},    {"model_digest", model->digest},
                   {"seed", setup.seed},      {"needle_tokens", needles.tokens},
                   {"known", needles.known}};
    out.text = fmt::format(
        "{}: {} contexts of {} tokens, {} predictions behind each; needles in {} tokens{}.\n\n"
        "| pipeline | NLL | NLL - evicting alone | bytes | saved | needles ranked right |\n"
        "|---|--:|--:|--:|--:|--:|\n",
        model->name, o_.texts, o_.tokens, o_.continuation, needles.tokens,
        needles.known ? "" : ", of which the whole cache knows too few at any length");
    const auto nll_of_texts = [&](std::size_t p) {
      if (!behind.refusals[p].empty())
        throw Error(Errc::usage,
                    fmt::format("--evict: {}: {}", pipelines[p].name, behind.refusals[p]));
      std::vector<double> nll;
      for (const auto& outcome : behind.outcomes[p]) nll.push_back(outcome.nll);
      return nll;
    };
    const auto alone = nll_of_texts(1);
    const auto bytes_alone = behind.footprints[1].bytes();
    for (std::size_t p = 0; p < pipelines.size(); ++p) {
      const auto nll = nll_of_texts(p);
      const auto increase = estimated_difference(nll, alone);
      const auto bytes = behind.footprints[p].bytes(), saved = 1 - bytes / bytes_alone,
                 mean = estimated_mean(nll).value;
      out.figures[p == 0 ? std::string(kFullCache) : wanted[p - 1].first] = {
          {"pipeline", pipelines[p].name},
          {"nll", mean},
          {"nll_increase", increase.value},
          {"nll_increase_low", increase.low},
          {"nll_increase_high", increase.high},
          {"entries", behind.footprints[p].kept()},
          {"bytes", bytes},
          {"saved", saved},
          {"ranking", needles.ranking[p]}};
      out.text += fmt::format("| {} | {:.4f} | {:.4f} [{:.4f}, {:.4f}] | {} | {:.3f} | {:.3f} |\n",
                              table_cell(pipelines[p].name), mean, increase.value, increase.low,
                              increase.high, bytes_text(bytes), saved, needles.ranking[p]);
    }
    return out;
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<Suite, KeyChannels>("key_channels", "what it costs to hold only some numbers of the keys",
                            "think-2025");
}

}  // namespace mneme::suites::key_channels
