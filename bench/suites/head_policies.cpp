// head_policies: whether choosing a rule for each head beats one rule for all heads at the same bytes, and whether heads
// stay with their rules from text to text.
//
//   contexts are cut by `fastgen` with each of `recover`; the highest that removes at least `removed` of the bytes is taken
//   single rules hold as many bytes: of every head the last entries, or the heavy hitters and as many last ones
//   nll_increase(m) = NLL behind m - NLL behind the whole cache
//   stability       = share of the heads that have the same rule in both texts of a pair
//
// spec      head_policies(recover="0.95,0.9,0.85,0.8,0.7,0.6,0.5,0.4,0.3,0.2", removed=0.4, tokens=1024, continuation=64,
//           texts=20)
// needs     softmax attention; books in the data folder, where there are none texts are made up
// cost      two readings of each context, and one in which all weights are looked at
// source    Ge et al. 2023, arXiv:2310.01801
// departs   single rules get the entries whose bytes are at least those of the rules for each head. Which part of a text is
//           removed is seen before anything is predicted behind it, so the choice of `recover` knows no outcome
// card      papers/fastgen-2023.toml
#include "mneme/core/registry.h"

#include <ATen/ATen.h>

#include "bench/kv/calibrated.h"
#include "bench/kv/forced.h"
#include "bench/kv/head_rules.h"
#include "bench/kv/rows.h"
#include "bench/kv/texts.h"
#include "bench/kv/watched_layer.h"
#include "bench/list.h"
#include "bench/suite.h"
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <fmt/format.h>
#include <string>
#include <utility>
#include <vector>

namespace mneme::suites::head_policies {

using namespace mneme::bench;
using nlohmann::json;

constexpr std::array<const char*, kHeadRules> kNames = {"special", "punctuation", "frequent",
                                                        "local", "everything"};

class HeadPolicies final : public Suite {
 public:
  struct Options {
    std::string recover = "0.95,0.9,0.85,0.8,0.7,0.6,0.5,0.4,0.3,0.2";
    double removed = 0.4;
    std::int64_t tokens = 1024, continuation = 64, texts = 20;
  };
  static void describe(Describe& d, Options& o) {
    d("recover", o.recover, "parts of its attention that a head has to keep, tried one by one");
    d("removed", o.removed, within(0, 1), "part of the bytes that has to go");
    d("tokens", o.tokens, at_least(128), "tokens of a context");
    d("continuation", o.continuation, at_least(1), "predictions behind each");
    d("texts", o.texts, at_least(2), "contexts, an even number: rules are compared in pairs");
  }
  explicit HeadPolicies(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {"mneme bench head_policies --tokens 1024 --recover 0.95,0.7,0.4"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    if (o_.texts % 2 != 0)
      throw Error(Errc::usage, fmt::format("--texts: {} is odd: rules are compared in pairs of "
                                           "texts",
                                           o_.texts));
    const auto levels = recover_levels();
    const auto model = load_model(setup, {});
    const auto rules = rules_of(*model->tokenizer);
    std::vector<Pipeline> pipelines = {{std::string(kFullCache), nullptr}};
    for (const auto level : levels) {
      pipelines.push_back(
          calibrated_pipeline(fastgen_spec(rules, level) + " | threshold(when=end)", nullptr));
      // The ids of all marks would fill lines.
      pipelines.back().name = fmt::format("fastgen(recover={})", level);
    }
    std::vector<std::vector<std::int32_t>> texts;
    std::string sources;
    for (auto& sample : sample_texts(setup.data, "test", *model->tokenizer,
                                     o_.tokens + o_.continuation + 1, o_.texts, setup.seed)) {
      if (sources.find(sample.source) == std::string::npos)
        sources += (sources.empty() ? "" : ", ") + sample.source;
      texts.push_back(std::move(sample.ids));
    }
    // In one pass, so that a window too is cut only once the text is complete.
    const ContextOptions options{o_.tokens, false, setup.between};
    const auto chosen_heads =
        measure_continuations(*model, pipelines, texts, o_.tokens, 0, options);
    std::size_t chosen = pipelines.size() - 1;
    for (auto p = chosen; p > 0; --p) {
      if (1 - share(chosen_heads, p) >= o_.removed) chosen = p;
    }
    const auto entries = std::clamp<std::int64_t>(
        static_cast<std::int64_t>(
            std::ceil(share(chosen_heads, chosen) * static_cast<double>(o_.tokens))),
        8, o_.tokens);
    std::vector<Pipeline> singles = {
        {std::string(kFullCache), nullptr},
        calibrated_pipeline(fmt::format("window(sinks=4, size={})", entries - 4), nullptr),
        calibrated_pipeline(fmt::format("h2o | keep(entries={}, sinks=4, recent={}, when=end)",
                                        entries, entries / 2),
                            nullptr)};
    const auto one_rule = measure_continuations(*model, singles, texts, o_.tokens, 0, options);

    SuiteReport out;
    out.figures = {{"suite", "head_policies"}, {"options", options_json<HeadPolicies>(o_)},
                   {"model", model->name},     {"model_digest", model->digest},
                   {"seed", setup.seed},       {"source", sources},
                   {"sweep", json::array()}};
    out.text = fmt::format(
        "{}: {} contexts of {} tokens from {}, {} predictions behind each.\n\n| pipeline | NLL - "
        "full | removed | entries | bytes |\n|---|--:|--:|--:|--:|\n",
        model->name, o_.texts, o_.tokens, sources, o_.continuation);
    for (std::size_t p = 1; p < pipelines.size(); ++p) {
      auto one = figures_of(pipelines, chosen_heads, p, out.text);
      one["recover"] = levels[p - 1];
      if (p == chosen) out.figures["chosen"] = one;
      out.figures["sweep"].push_back(std::move(one));
    }
    out.figures["local"] = figures_of(singles, one_rule, 1, out.text);
    out.figures["h2o"] = figures_of(singles, one_rule, 2, out.text);
    const auto increase = [&](const char* of) {
      return out.figures[of]["nll_increase"].get<double>();
    };
    const std::string best = increase("local") <= increase("h2o") ? "local" : "h2o";
    out.figures["best_single"] = out.figures[best];
    stability(*model, rules, levels[chosen - 1], texts, setup, out);
    return out;
  }

 private:
  [[nodiscard]] std::vector<double> recover_levels() const {
    std::vector<double> out;
    for (const auto& part : listed(o_.recover)) {
      std::size_t read = 0;
      double level = -1;
      try {
        level = std::stod(part, &read);
      } catch (const std::exception&) {
        read = 0;
      }
      if (read != part.size() || !(level >= 0 && level < 1))
        throw Error(Errc::usage,
                    fmt::format("--recover: '{}' is no number from 0 to below 1", part));
      out.push_back(level);
    }
    if (out.empty()) throw Error(Errc::usage, "--recover: is empty: at least one is wanted");
    std::sort(out.begin(), out.end(), std::greater<>());
    return out;
  }

  /// Of the bytes of the whole cache.
  static double share(const ContinuationFindings& found, std::size_t p) {
    return found.footprints[p].bytes() / found.footprints[0].bytes();
  }

  static json figures_of(const std::vector<Pipeline>& pipelines, const ContinuationFindings& found,
                         std::size_t p, std::string& text) {
    if (!found.refusals[p].empty())
      throw Error(Errc::usage,
                  fmt::format("--tokens: {}: {}", pipelines[p].name, found.refusals[p]));
    std::vector<double> nll, full;
    for (const auto& outcome : found.outcomes[p]) {
      nll.push_back(outcome.nll);
      full.push_back(outcome.full_nll);
    }
    const auto increase = estimated_difference(nll, full);
    const auto& used = found.footprints[p];
    text += fmt::format("| {} | {:.4f} [{:.4f}, {:.4f}] | {:.3f} | {:.0f} | {} |\n",
                        table_cell(pipelines[p].name), increase.value, increase.low, increase.high,
                        1 - share(found, p), used.kept(), bytes_text(used.bytes()));
    return {{"pipeline", pipelines[p].name},
            {"nll_increase", increase.value},
            {"nll_increase_low", increase.low},
            {"nll_increase_high", increase.high},
            {"removed", 1 - share(found, p)},
            {"entries", used.kept()},
            {"bytes", used.bytes()}};
  }

  void stability(const LanguageModel& model, const RuleSettings& rules, double recover,
                 const std::vector<std::vector<std::int32_t>>& texts, const SuiteSetup& setup,
                 SuiteReport& out) const {
    const auto shape = attention_of(model);
    const auto stage = registry().make<KvStage>(fastgen_spec(rules, recover));
    const auto& scoring = dynamic_cast<const ScoreStage&>(*stage);
    std::vector<std::vector<HeadRule>> of_texts;
    std::array<double, kHeadRules> counts{};
    double all = 0;
    for (const auto& text : texts) {
      auto& of_heads = of_texts.emplace_back();
      watch_layers(model, shape, {text.begin(), text.begin() + o_.tokens},
                   stage->needs().query_window, setup.between, [&](const WatchedLayer& layer) {
                     const auto scores = scoring.score(layer);
                     for (std::int64_t h = 0; h < layer.heads; ++h) {
                       const auto& score = scores[static_cast<std::size_t>(h)];
                       const auto ids = layer.token_ids(h).contiguous();
                       std::vector<bool> kept;
                       for (std::int64_t j = 0; j < score.size(0); ++j)
                         kept.push_back(std::isfinite(score.const_data_ptr<float>()[j]));
                       const auto rule =
                           rule_of(kept, {ids.const_data_ptr<std::int64_t>(), kept.size()}, rules);
                       of_heads.push_back(rule);
                       counts.at(static_cast<std::size_t>(rule)) += 1;
                       all += 1;
                     }
                   });
    }
    const auto stable = stable_share(of_texts);
    json shares = json::object();
    out.text +=
        fmt::format("\n### Rules at recover={}\n\n| rule | share of heads |\n|---|--:|\n", recover);
    for (std::size_t rule = 0; rule < counts.size(); ++rule) {
      shares[kNames.at(rule)] = counts.at(rule) / all;
      out.text += fmt::format("| {} | {:.3f} |\n", kNames.at(rule), counts.at(rule) / all);
    }
    out.text +=
        fmt::format("\n{:.3f} of the heads have the same rule in both texts of a pair.\n", stable);
    out.figures["rules"] = std::move(shares);
    out.figures["stability"] = stable;
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<Suite, HeadPolicies>("head_policies",
                             "whether a rule for each head beats one for all, and stays the same",
                             "fastgen-2023");
}

}  // namespace mneme::suites::head_policies
