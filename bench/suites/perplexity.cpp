// perplexity: how well a pipeline predicts one long text that streams past it, and how much it ever holds.
//
//   the text goes through the model a chunk a pass, and the pipeline compresses as it comes; the negative log-likelihood
//   of every token is that of the prediction made when it came. exp of its mean is the perplexity.
//
// spec      perplexity(tokens=8192, segments=8)
// needs     books in the data folder; where there are none the text is made up
// cost      one pass over the text a pipeline, with the vocabulary projected at every token: its tokens a second are
//           fewer than those of a plain prefill
// departs   positions run on: past the model's context its row says that it was refused, and gives what it had until then.
//           Differences to the full cache are of the windows that both came to.
#include "mneme/core/registry.h"

#include "bench/kv/figure.h"
#include "bench/kv/forced.h"
#include "bench/kv/rows.h"
#include "bench/kv/texts.h"
#include "bench/suite.h"
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fmt/format.h>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace mneme::suites::perplexity {

using namespace mneme::bench;

class Perplexity final : public Suite {
 public:
  struct Options : KvOptions {
    std::int64_t tokens = 8192, segments = 8, decode = 16;
    std::string split = "test";
  };
  static void describe(Describe& d, Options& o) {
    describe_kv(d, o);
    d("tokens", o.tokens, within(2, 200'000), "tokens of the text");
    d("segments", o.segments, at_least(1), "parts of the text whose figures are told apart");
    d("split", o.split, one_of({"test", "dev", "train"}), "whose books, by author");
    d("decode", o.decode, at_least(0), "tokens that are decoded behind the text, for the time");
  }
  explicit Perplexity(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {"mneme bench perplexity --kv 'window(sinks=4, size=1020) | renumber' --tokens 200000"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    static_cast<void>(parse_pipelines(o_.kv));  // before a model is loaded in vain
    const auto model = load_model(setup, o_);
    const auto pipelines = parse_pipelines(o_.kv, model.get());
    const auto text =
        sample_texts(setup.data, o_.split, *model->tokenizer, o_.tokens, 1, setup.seed).front();
    std::vector<KvRow> rows;
    ScatterPanel panel{"NLL, nats a token", {}};
    std::string segments = segment_header();
    std::vector<double> full;
    for (std::size_t p = 0; p < pipelines.size(); ++p) {
      auto found = measure_stream(*model, pipelines[p], text.ids, context_options(setup, o_));
      const auto windows = window_means(found.nll, o_.chunk);
      if (p == 0) full = windows;
      KvRow row;
      row.pipeline = pipelines[p].name;
      row.refusal = found.refusal;
      if (!found.nll.empty()) {
        row.footprint.add(found.context);
        const auto both = std::min(windows.size(), full.size());
        const auto nll = estimated_mean(windows);
        row.scores = {
            {"NLL", nll, 4},
            {"perplexity", {std::exp(nll.value), std::exp(nll.low), std::exp(nll.high)}, 3}};
        if (p > 0)
          row.scores.push_back(
              {"NLL - full",
               estimated_difference(std::span(windows).first(both), std::span(full).first(both)),
               4});
        row.more = {{"tokens", found.nll.size() + 1}, {"windows_nll", windows}};
        panel.points.push_back(
            {row.pipeline, row.footprint.most_bytes(), nll.value, nll.low, nll.high});
        if (found.refusal.empty() && o_.decode > 0) decode(*model, found, text.ids.back(), row);
      }
      segments += segment_line(row, found.nll);
      rows.push_back(std::move(row));
    }
    return kv_report({"perplexity", options_json<Perplexity>(o_), "after", setup.seed, model.get()},
                     o_, rows,
                     fmt::format("### NLL along the text\n\n{}\n{} tokens of {}.\n", segments,
                                 o_.tokens, text.source),
                     scatter_svg(fmt::format("perplexity: {}, {} tokens", model->name, o_.tokens),
                                 "resident bytes, at most", {panel}));
  }

 private:
  void decode(const LanguageModel& model, const StreamOutcome& found, std::int32_t next,
              KvRow& row) const {
    try {
      row.footprint.add_decoding(o_.decode,
                                 decode_seconds(model, found.context.state, next, o_.decode));
    } catch (const Error& error) {  // the text may have filled the context
      if (refusal_of(error).empty()) throw;
    }
  }

  [[nodiscard]] std::string segment_header() const {
    std::string out = "| pipeline |", line = "|---|";
    for (std::int64_t s = 0; s < o_.segments; ++s) {
      out += fmt::format(" to {} |", (s + 1) * o_.tokens / o_.segments);
      line += "--:|";
    }
    return out + "\n" + line + "\n";
  }

  /// The means of the segments of what was predicted; a segment that was not reached to its end is left empty.
  [[nodiscard]] std::string segment_line(KvRow& row, std::span<const double> nll) const {
    auto out = fmt::format("| {} |", table_cell(row.pipeline));
    auto figures = nlohmann::json::array();
    for (std::int64_t s = 0; s < o_.segments; ++s) {
      // Number i is of token i + 1.
      const auto begin = static_cast<std::size_t>(
                     std::max<std::int64_t>(0, s * o_.tokens / o_.segments - 1)),
                 end = static_cast<std::size_t>((s + 1) * o_.tokens / o_.segments - 1);
      if (end > nll.size() || begin >= end) {
        out += " |";
        figures.push_back(nullptr);
        continue;
      }
      const auto part = nll.subspan(begin, end - begin);
      const auto mean =
          std::accumulate(part.begin(), part.end(), 0.0) / static_cast<double>(part.size());
      out += fmt::format(" {:.4f} |", mean);
      figures.push_back(mean);
    }
    row.more["segments_nll"] = std::move(figures);
    return out + "\n";
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<Suite, Perplexity>("perplexity",
                           "how a long text is predicted as it streams past a bounded memory");
}

}  // namespace mneme::suites::perplexity
