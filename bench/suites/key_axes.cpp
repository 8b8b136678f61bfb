// key_axes: whether keys lie along few axes, the same in other texts, and what is won by comparing them there.
//
//   axes P of the keys of a text A; C the covariance of the keys of a text B of other authors, O its own axes
//   r       = least with 90 % of A's variance along the first r of P, of each head
//   loss    = sum_{c<r} o_c' C o_c / tr C - sum_{c<r} p_c' C p_c / tr C,       mean over the heads of all layers
//   nll_increase(m) = NLL of tokens shown one by one behind m - NLL behind the whole cache
//   speedup = time of attention over the whole cache / time with `loki`, a token in all layers behind `depth` tokens
//
// spec      key_axes(calibrate=8192, tokens=4096, rank=16, keep=0.25, space=post, context=1024, continuation=64, texts=10,
//           depth=8184, steps=40)
// needs     softmax attention; books in the data folder, where there are none texts are made up
// cost      each text once; every continuation token by token for each of three pipelines
// source    Singhania et al. 2024, arXiv:2406.02542
// departs   heavy hitters (h2o) are half what was attended to most and half the last entries, as in their own paper
// card      papers/loki-2024.toml
#include "mneme/core/registry.h"
#include "mneme/core/taps.h"
#include "mneme/kv/head_profile.h"
#include "mneme/mixers/kv_store.h"
#include "mneme/probes/attention.h"
#include "mneme/probes/moments.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "bench/kv/calibrated.h"
#include "bench/kv/context.h"
#include "bench/kv/explained.h"
#include "bench/kv/rows.h"
#include "bench/kv/stepwise.h"
#include "bench/kv/texts.h"
#include "bench/suite.h"
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <fmt/format.h>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme::suites::key_axes {

using namespace mneme::bench;
using nlohmann::json;

constexpr double kShare = 0.9;

class KeyAxes final : public Suite {
 public:
  struct Options {
    std::int64_t calibrate = 8192, tokens = 4096, rank = 16, context = 1024, continuation = 64,
                 texts = 10, depth = 8184, steps = 40;
    double keep = 0.25;
    std::string space = "post";
  };
  static void describe(Describe& d, Options& o) {
    d("calibrate", o.calibrate, at_least(64), "tokens of the text that axes are measured on");
    d("tokens", o.tokens, at_least(64), "tokens of the text that they are tried on");
    d("rank", o.rank, at_least(1), "coordinates of a key that loki compares");
    d("keep", o.keep, within(0, 1), "share of the entries that loki reads and h2o holds");
    d("space", o.space, one_of({"post", "pre"}), "axes that loki compares along");
    d("context", o.context, at_least(64), "tokens of a context");
    d("continuation", o.continuation, at_least(1), "predictions behind each");
    d("texts", o.texts, at_least(1), "contexts");
    d("depth", o.depth, at_least(64), "tokens behind which the attention of one more is timed");
    d("steps", o.steps, at_least(1), "how often it is timed");
  }
  explicit KeyAxes(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {"mneme bench key_axes --rank 16 --keep 0.25"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    const auto model = load_model(setup, {});
    const auto heads =
        measure_heads(*model, fmt::format("key_pca(tokens={0}, positions={0})", o_.calibrate),
                      setup.data, o_.calibrate, setup.seed, setup.between);
    SuiteReport out;
    out.figures = {{"suite", "key_axes"},  {"options", options_json<KeyAxes>(o_)},
                   {"model", model->name}, {"model_digest", model->digest},
                   {"seed", setup.seed},   {"calibrated_on", heads.source}};
    out.text = fmt::format("{}; axes measured on {} tokens of {}.\n\n", model->name, o_.calibrate,
                           heads.source);
    axes(*model, heads, setup, out);
    continuations(*model, heads, setup, out);
    time_attention(*model, heads, setup, out);
    return out;
  }

 private:
  void axes(const LanguageModel& model, const MeasuredHeads& heads, const SuiteSetup& setup,
            SuiteReport& out) const {
    const c10::InferenceMode inference;
    const auto shape = attention_of(model);
    const auto text =
        sample_texts(setup.data, "test", *model.tokenizer, o_.tokens, 1, setup.seed).front();
    auto pre = moments_of_layers(shape.layers, shape.kv_heads, shape.width),
         post = moments_of_layers(shape.layers, shape.kv_heads, shape.width);
    watch_attention(
        model, text.ids, 512, [&](std::int64_t) { setup.between(); },
        [&](std::int64_t layer, std::int64_t first, const at::Tensor&, const at::Tensor& keys) {
          const auto at = at::arange(first, first + keys.size(1), at::kLong);
          pre[static_cast<std::size_t>(layer)].add(keys);
          post[static_cast<std::size_t>(layer)].add(turned(shape, keys, at));
        });
    out.text += fmt::format(
        "### Axes on {} tokens of {}\n\n| keys | Rank@90, median of layers | of "
        "the width | variance along own axes | along those measured | loss | "
        "greatest |\n|---|--:|--:|--:|--:|--:|--:|\n",
        o_.tokens, text.source);
    for (const auto& [space, moments] : {std::pair{"pre", &pre}, std::pair{"post", &post}}) {
      const auto name = fmt::format("key_pca.{}", space);
      const auto& measured = heads.profile->find(name);
      const auto ranks = rank_at(heads.profile->find(name + ".variance"), kShare);  // [L,H]
      std::vector<at::Tensor> own, other;
      for (std::int64_t l = 0; l < shape.layers; ++l) {
        const auto& here = (*moments)[static_cast<std::size_t>(l)];
        const auto covariance = here.covariance();
        own.push_back(explained_share(covariance, principal_axes(here).axes, ranks[l]));
        other.push_back(explained_share(covariance, measured[l], ranks[l]));
      }
      const auto of_own = at::stack(own), of_other = at::stack(other), loss = of_own - of_other;
      const auto by_layer = ranks.to(at::kDouble).mean(1);
      const auto median = median_of(by_layer), width = static_cast<double>(shape.width);
      out.figures[space] = {{"rank90", median},
                            {"rank90_of_width", median / width},
                            {"rank90_by_layer", per_layer(by_layer)},
                            {"own_axes", of_own.mean().item<double>()},
                            {"measured_axes", of_other.mean().item<double>()},
                            {"loss", loss.mean().item<double>()},
                            {"greatest_loss", loss.max().item<double>()}};
      out.text += fmt::format("| {} | {:.1f} | {:.3f} | {:.4f} | {:.4f} | {:.4f} | {:.4f} |\n",
                              space, median, median / width, of_own.mean().item<double>(),
                              of_other.mean().item<double>(), loss.mean().item<double>(),
                              loss.max().item<double>());
    }
    out.figures["axes_source"] = text.source;
  }

  void continuations(const LanguageModel& model, const MeasuredHeads& heads,
                     const SuiteSetup& setup, SuiteReport& out) const {
    const auto held =
        static_cast<std::int64_t>(std::ceil(o_.keep * static_cast<double>(o_.context)));
    const std::vector<std::pair<std::string, Pipeline>> all = {
        {"full", {std::string(kFullCache), nullptr}},
        {"loki", calibrated_pipeline(loki(), heads.profile)},
        {"h2o",
         calibrated_pipeline(
             fmt::format("h2o | keep(ratio={}, sinks=0, recent={}, when=end)", o_.keep, held / 2),
             heads.profile)}};
    std::vector<Pipeline> pipelines;
    for (const auto& [name, pipeline] : all) pipelines.push_back(pipeline);
    std::vector<std::vector<std::int32_t>> texts;
    for (auto& sample : sample_texts(setup.data, "test", *model.tokenizer,
                                     o_.context + o_.continuation + 1, o_.texts, setup.seed))
      texts.push_back(std::move(sample.ids));
    const auto nll =
        measure_steps(model, pipelines, texts, o_.context, {512, false, setup.between});
    out.text += fmt::format(
        "\n### {} predictions, token by token, behind {} contexts of {} "
        "tokens\n\n| pipeline | NLL | NLL - full |\n|---|--:|--:|\n",
        o_.continuation, o_.texts, o_.context);
    json figures = json::object();
    for (std::size_t p = 0; p < all.size(); ++p) {
      const auto mean = estimated_mean(nll[p]).value;
      const auto increase = estimated_difference(nll[p], nll[0]);
      figures[all[p].first] = {{"pipeline", pipelines[p].name},
                               {"nll", mean},
                               {"nll_increase", increase.value},
                               {"nll_increase_low", increase.low},
                               {"nll_increase_high", increase.high}};
      out.text +=
          fmt::format("| {} | {:.4f} | {:.4f} [{:.4f}, {:.4f}] |\n", table_cell(pipelines[p].name),
                      mean, increase.value, increase.low, increase.high);
    }
    out.figures["steps"] = std::move(figures);
  }

  void time_attention(const LanguageModel& model, const MeasuredHeads& heads,
                      const SuiteSetup& setup, SuiteReport& out) const {
    const c10::InferenceMode inference;
    const auto shape = attention_of(model);
    const auto text =
        sample_texts(setup.data, "test", *model.tokenizer, o_.depth + 1, 1, setup.seed).front();
    auto whole = model.model->start(1);
    feed(model, whole, std::span(text.ids).first(static_cast<std::size_t>(o_.depth)),
         LogitsAt::none, {512, false, setup.between});
    auto selecting = whole.fork();
    use_plan(selecting, calibrated_pipeline(loki(), heads.profile).plan);
    const auto queries = queries_of(model, whole, text.ids.back());
    Call call;
    call.positions = at::full({1, 1}, o_.depth, at::kLong);
    call.compute = model.compute;
    const auto scale = 1 / std::sqrt(static_cast<double>(shape.width));
    const std::array<const State*, 2> states = {&whole, &selecting};
    std::array<std::vector<double>, 2> seconds;
    // In turns, so that whatever else the machine does falls on both; the first of each warms up.
    for (std::int64_t step = 0; step <= o_.steps; ++step) {
      setup.between();
      for (std::size_t which = 0; which < states.size(); ++which) {
        const auto stores = kv_stores(*states.at(which));
        const auto start = std::chrono::steady_clock::now();
        for (std::size_t layer = 0; layer < stores.size(); ++layer)
          (void)stores[layer]->attend(queries[layer], call, scale, false);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        if (step > 0) seconds.at(which).push_back(took.count());
      }
    }
    const auto median = [](std::vector<double> x) {
      std::nth_element(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2), x.end());
      return x[x.size() / 2];
    };
    const auto dense = median(seconds[0]), loki = median(seconds[1]);
    out.figures["attention"] = {
        {"depth", o_.depth}, {"dense_s", dense}, {"loki_s", loki}, {"speedup", dense / loki}};
    out.text += fmt::format(
        "\n### Attention of one token behind {} tokens, all layers\n\nWhole cache "
        "{:.3f} ms, loki {:.3f} ms: {:.2f} times as fast.\n",
        o_.depth, 1000 * dense, 1000 * loki, dense / loki);
  }

  /// What the layers [1,Hq,1,d] ask, not turned, when a token comes behind a state, which stays as it is.
  static std::vector<at::Tensor> queries_of(const LanguageModel& model, const State& state,
                                            std::int32_t id) {
    std::vector<at::Tensor> out;
    Taps taps;
    taps.add("layers.*.attn.q", [&](std::string_view, const at::Tensor& q) {
      out.push_back(q.to(at::kFloat).contiguous().clone());
      return q;
    });
    Batch batch;
    batch.ids = at::full({1, 1}, id, at::kLong);
    batch.logits_at = LogitsAt::none;
    batch.compute = model.compute;
    batch.taps = &taps;
    auto own = state.fork();
    (void)model.model->forward(batch, own);
    return out;
  }

  [[nodiscard]] std::string loki() const {
    return fmt::format("loki(rank={}, keep={}, space={})", o_.rank, o_.keep, o_.space);
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<Suite, KeyAxes>("key_axes",
                        "whether keys lie along few axes, and what comparing them there wins",
                        "loki-2024");
}

}  // namespace mneme::suites::key_axes
