// query_filters: whether the direction that a head's queries share tells which keys will be missed.
//
//   the filters are measured on a text A, and everything else on texts B of other authors:
//   gap(m)   = perplexity behind what m holds of a stream - perplexity behind all of it, m: qfilter, or first and last
//              entries alone, as many
//   rho_h(s) = Spearman's correlation, over the entries j of KV head h, of score s_j with mean_{i >= j} mean_g a_gij
//   wins     = share of the KV heads of all layers with rho_h(qfilter) > rho_h(k_norm)
//   ranking  = share of needles ranked right behind `keep` of a text, by qfilter and by snapkv, on the longest texts on
//              which the whole cache ranks at least 0.8 of them right
//
// spec      query_filters(calibrate=2048, tokens=4096, entries=256, chunk=64, attention=2048, keep=0.25, samples=8)
// needs     softmax attention; books in the data folder, where there are none texts are made up
// cost      the stream once for each of three pipelines; all weights of `attention` tokens; the needles
// source    Godey et al. 2025, arXiv:2503.02812
// departs   entries that fewer than 32 queries follow are left out of rho: their mean is of too few
// card      papers/q-filters-2025.toml
#include "mneme/core/registry.h"
#include "mneme/kv/head_profile.h"
#include "mneme/probes/needles.h"

#include <ATen/ATen.h>

#include "bench/kv/calibrated.h"
#include "bench/kv/forced.h"
#include "bench/kv/known_length.h"
#include "bench/kv/rows.h"
#include "bench/kv/texts.h"
#include "bench/kv/watched_layer.h"
#include "bench/list.h"
#include "bench/suite.h"
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fmt/format.h>
#include <numeric>
#include <string>
#include <vector>

namespace mneme::suites::query_filters {

using namespace mneme::bench;
using nlohmann::json;

constexpr std::int64_t kSinks = 4, kRecent = 32;

class QueryFilters final : public Suite {
 public:
  struct Options {
    std::int64_t calibrate = 2048, tokens = 4096, entries = 256, chunk = 64, attention = 2048,
                 samples = 8;
    double keep = 0.25;
    std::string lengths = "256,512,1024,2048", task = "needle";
  };
  static void describe(Describe& d, Options& o) {
    d("calibrate", o.calibrate, at_least(64), "tokens of the text that filters are measured on");
    d("tokens", o.tokens, within(2, 200'000), "tokens of the stream");
    d("entries", o.entries, at_least(kSinks + kRecent), "entries that a head holds of it");
    d("chunk", o.chunk, at_least(1), "tokens of the stream in one pass");
    d("attention", o.attention, at_least(2 * kRecent),
      "tokens of the text whose weights are looked at");
    d("keep", o.keep, within(0, 1), "share of a text with a needle that is held");
    d("lengths", o.lengths, "tokens of texts with a needle, one number or several");
    d("samples", o.samples, at_least(1), "needles at each of five depths");
    d("task", o.task, "recall task, a spec");
  }
  explicit QueryFilters(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {"mneme bench query_filters --entries 256 --lengths 512,1024"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    const auto lengths = listed_numbers("lengths", o_.lengths, 1);
    const auto model = load_model(setup, {});
    const auto heads = measure_heads(*model,
                                     fmt::format("qfilter(tokens={}, positions={})", o_.calibrate,
                                                 std::max(o_.tokens, o_.calibrate)),
                                     setup.data, o_.calibrate, setup.seed, setup.between);
    SuiteReport out;
    out.figures = {{"suite", "query_filters"}, {"options", options_json<QueryFilters>(o_)},
                   {"model", model->name},     {"model_digest", model->digest},
                   {"seed", setup.seed},       {"calibrated_on", heads.source}};
    out.text = fmt::format("{}; filters measured on {} tokens of {}.\n\n", model->name,
                           o_.calibrate, heads.source);
    stream(*model, heads, setup, out);
    correlate(*model, heads, setup, out);
    needles(*model, heads, setup, lengths, out);
    return out;
  }

 private:
  void stream(const LanguageModel& model, const MeasuredHeads& heads, const SuiteSetup& setup,
              SuiteReport& out) const {
    const auto text =
        sample_texts(setup.data, "test", *model.tokenizer, o_.tokens, 1, setup.seed).front();
    const std::vector<std::pair<std::string, Pipeline>> all = {
        {"full", {std::string(kFullCache), nullptr}},
        {"qfilter",
         calibrated_pipeline(fmt::format("qfilter | keep(entries={}, sinks={}, recent={})",
                                         o_.entries, kSinks, kRecent),
                             heads.profile)},
        {"window",
         calibrated_pipeline(fmt::format("window(sinks={}, size={})", kSinks, o_.entries - kSinks),
                             heads.profile)}};
    json figures = {{"source", text.source}, {"tokens", o_.tokens}};
    out.text += fmt::format(
        "### A stream of {} tokens of {}, {} a pass\n\n| pipeline | perplexity "
        "| gap | bytes |\n|---|--:|--:|--:|\n",
        o_.tokens, text.source, o_.chunk);
    double full = 0;
    for (const auto& [name, pipeline] : all) {
      const auto found =
          measure_stream(model, pipeline, text.ids, {o_.chunk, false, setup.between});
      if (!found.refusal.empty())
        throw Error(Errc::usage, fmt::format("--tokens: {}: {}", pipeline.name, found.refusal));
      const auto nll = std::accumulate(found.nll.begin(), found.nll.end(), 0.0) /
                       static_cast<double>(found.nll.size());
      const auto perplexity = std::exp(nll);
      if (name == "full") full = perplexity;
      figures[name] = {{"pipeline", pipeline.name},
                       {"nll", nll},
                       {"perplexity", perplexity},
                       {"gap", perplexity - full},
                       {"entries", found.context.kept},
                       {"bytes", found.context.bytes},
                       {"most_bytes", found.context.most_bytes}};
      out.text +=
          fmt::format("| {} | {:.3f} | {:.3f} | {} |\n", table_cell(pipeline.name), perplexity,
                      perplexity - full, bytes_text(static_cast<double>(found.context.bytes)));
    }
    out.figures["stream"] = std::move(figures);
  }

  void correlate(const LanguageModel& model, const MeasuredHeads& heads, const SuiteSetup& setup,
                 SuiteReport& out) const {
    const auto shape = attention_of(model);
    const auto text =
        sample_texts(setup.data, "test", *model.tokenizer, o_.attention, 1, setup.seed + 1).front();
    const auto filter = registry().make<KvStage>("qfilter"),
               norm = registry().make<KvStage>("k_norm");
    filter->calibrate(*heads.profile);
    const auto scores = [](const std::unique_ptr<KvStage>& stage, const WatchedLayer& layer) {
      return dynamic_cast<const ScoreStage&>(*stage).score(layer);
    };
    const auto counted =
        std::min(o_.attention, static_cast<std::int64_t>(text.ids.size())) - kRecent;
    double of_filter = 0, of_norm = 0, wins = 0, all = 0;
    json by_layer = json::array();
    watch_layers(model, shape, text.ids, 1, setup.between, [&](const WatchedLayer& layer) {
      const auto by_filter = scores(filter, layer), by_norm = scores(norm, layer);
      double filter_here = 0, norm_here = 0;
      for (std::int64_t h = 0; h < layer.heads; ++h) {
        const auto truth = layer.mean_attention(h).narrow(0, 0, counted);
        const auto at = static_cast<std::size_t>(h);
        const auto x = rank_correlation(by_filter[at].narrow(0, 0, counted), truth),
                   y = rank_correlation(by_norm[at].narrow(0, 0, counted), truth);
        filter_here += x;
        norm_here += y;
        wins += x > y ? 1 : 0;
        all += 1;
      }
      of_filter += filter_here;
      of_norm += norm_here;
      const auto each = static_cast<double>(layer.heads);
      by_layer.push_back({{"qfilter", filter_here / each}, {"k_norm", norm_here / each}});
    });
    out.figures["correlation"] = {
        {"source", text.source},          {"tokens", o_.attention},  {"heads", all},
        {"qfilter", of_filter / all},     {"k_norm", of_norm / all}, {"wins", wins / all},
        {"by_layer", std::move(by_layer)}};
    out.text += fmt::format(
        "\n### Rank correlation with the attention received\n\n{} tokens of {}: qfilter {:.3f}, "
        "k_norm {:.3f}, means over {:.0f} KV heads; qfilter is ahead in {:.3f} of them.\n",
        o_.attention, text.source, of_filter / all, of_norm / all, all, wins / all);
  }

  void needles(const LanguageModel& model, const MeasuredHeads& heads, const SuiteSetup& setup,
               const std::vector<std::int64_t>& lengths, SuiteReport& out) const {
    const auto kept =
        fmt::format("keep(ratio={}, sinks={}, recent={}, when=end)", o_.keep, kSinks, kRecent);
    const std::vector<Pipeline> pipelines = {
        {std::string(kFullCache), nullptr},
        calibrated_pipeline("qfilter | " + kept, heads.profile),
        calibrated_pipeline("snapkv | " + kept, heads.profile),
        calibrated_pipeline("k_norm | " + kept, heads.profile),
        calibrated_pipeline("random | " + kept, heads.profile)};
    RecallSettings settings;
    settings.samples = o_.samples;
    settings.generate = false;
    settings.seed = setup.seed;
    settings.context.between = setup.between;
    const auto found =
        rank_at_known_length(model, pipelines, o_.task, lengths, setup.data, settings);
    out.figures["needle"] = {{"tokens", found.tokens},     {"known", found.known},
                             {"full", found.ranking[0]},   {"qfilter", found.ranking[1]},
                             {"snapkv", found.ranking[2]}, {"k_norm", found.ranking[3]},
                             {"random", found.ranking[4]}};
    out.text += fmt::format(
        "\n### Needles in {} tokens, {} of the text held\n\n| pipeline | ranked "
        "right |\n|---|--:|\n",
        found.tokens, o_.keep);
    for (std::size_t p = 0; p < pipelines.size(); ++p)
      out.text += fmt::format("| {} | {:.3f} |\n", table_cell(pipelines[p].name), found.ranking[p]);
    if (!found.known)
      out.text += "\nThe whole cache knows too few of them at any length for this to tell much.\n";
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<Suite, QueryFilters>("query_filters",
                             "whether the direction that queries share tells which keys are missed",
                             "q-filters-2025");
}

}  // namespace mneme::suites::query_filters
