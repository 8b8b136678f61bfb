// parallel_context: what cutting a text into windows that are encoded apart does to a model, and what a shared prefix and a
// choice of windows give back.
//
//   own       every window begins with a BOS of its own
//   sink      all windows are encoded behind one BOS and `prefix`
//   select    the same, each layer reading the `select` best windows alone
//
// Of each: the negative log-likelihood of a text's continuation, how often the right answer about a needle is ranked first,
// and the mean entropy of the attention of the continuation's tokens over heads and layers. All windows together are the
// same tokens, however many they are.
//
// spec      parallel_context(windows="1,2,4,8,16", tokens=1024, continuation=64, texts=10, samples=30)
// needs     books in the data folder; where there are none the text is made up
// cost      a pass over each text for every number of windows, and one more for `at` windows behind the prefix
// source    Zhang et al. 2024, arXiv:2412.16545
// card      papers/attention-entropy-2024.toml
#include "mneme/probes/parallel_context.h"

#include "mneme/core/progress.h"
#include "mneme/core/registry.h"

#include <ATen/ATen.h>

#include "bench/kv/divergence.h"
#include "bench/kv/rows.h"
#include "bench/kv/texts.h"
#include "bench/list.h"
#include "bench/probes/needle_set.h"
#include "bench/suite.h"
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fmt/format.h>
#include <span>
#include <string>
#include <vector>

namespace mneme::suites::parallel_context {

using namespace mneme::bench;

class ParallelContextSuite final : public Suite {
 public:
  struct Options {
    std::string windows = "1,2,4,8,16", prefix = "Read this part of a text:", task = "needle",
                split = "test";
    std::int64_t tokens = 1024, continuation = 64, texts = 10, samples = 30, at = 8, select = 2;
  };
  static void describe(Describe& d, Options& o) {
    d("windows", o.windows, "numbers of windows, the first of them 1");
    d("tokens", o.tokens, at_least(64), "of all windows together");
    d("continuation", o.continuation, at_least(1), "tokens that are predicted behind them");
    d("texts", o.texts, at_least(1), "texts that are continued");
    d("samples", o.samples, at_least(1), "texts that are asked about");
    d("prefix", o.prefix, "what all windows are encoded behind, after a BOS");
    d("at", o.at, at_least(2), "number of windows that prefix and choice are measured with");
    d("select", o.select, at_least(1), "windows that each layer reads where it chooses");
    d("task", o.task, "recall task of the texts that are asked about, a spec");
    d("split", o.split, one_of({"test", "dev", "train"}), "whose books are continued, by author");
  }
  explicit ParallelContextSuite(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {"mneme bench parallel_context --windows 1,2,4,8 --at 8"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    const auto counts = listed_numbers("windows", o_.windows, 1);
    if (counts.size() < 3 || counts.front() != 1 ||
        std::find(counts.begin(), counts.end(), o_.at) == counts.end()) {
      throw Error(Errc::usage,
                  fmt::format("--windows: '{}': at least three numbers are wanted, the "
                              "first 1, and {} (--at) among them",
                              o_.windows, o_.at));
    }
    const auto model = load_model(setup, {});
    std::vector<std::int32_t> bos;
    if (const auto id = model->tokenizer->bos()) bos.push_back(*id);
    auto prefix = bos;
    for (const auto id : model->tokenizer->encode(o_.prefix)) prefix.push_back(id);
    const ParallelContext own(*model, {}), shared(*model, prefix);

    std::vector<Row> rows;
    for (const auto P : counts) rows.push_back({"own", P, 0});
    const auto sink = rows.size();
    rows.push_back({"sink", o_.at, 0});
    rows.push_back({"select", o_.at, o_.select});
    // Windows are encoded once for both rows that read those behind the prefix.
    const auto read_all = [&](std::span<const std::int32_t> context,
                              std::span<const std::int32_t> query, LogitsAt at, const auto& see) {
      std::vector<EncodedWindow> behind_prefix;
      for (std::size_t r = 0; r < rows.size(); ++r) {
        setup.between();
        auto cut = cut_into_windows(context, rows[r].windows);
        if (r < sink) {
          for (auto& window : cut) window.insert(window.begin(), bos.begin(), bos.end());
          see(rows[r], own.read(own.encode(cut), query, 0, at));
          continue;
        }
        if (behind_prefix.empty()) behind_prefix = shared.encode(cut);
        see(rows[r], shared.read(behind_prefix, query, rows[r].select, at));
      }
    };

    Progress progress("reading windows", o_.texts + o_.samples, "texts");
    for (const auto& text : sample_texts(setup.data, o_.split, *model->tokenizer,
                                         o_.tokens + o_.continuation + 1, o_.texts, setup.seed)) {
      const std::span ids(text.ids);
      const auto context = ids.first(static_cast<std::size_t>(o_.tokens)),
                 query = ids.subspan(static_cast<std::size_t>(o_.tokens),
                                     static_cast<std::size_t>(o_.continuation)),
                 came = ids.subspan(static_cast<std::size_t>(o_.tokens) + 1);
      read_all(context, query, LogitsAt::all, [&](Row& row, const ParallelReading& got) {
        for (const auto x : nll_of(got.logits[0], came))
          row.nll += x / static_cast<double>(o_.texts * o_.continuation);
        row.entropy +=
            got.entropy.to(at::kDouble).mean().item<double>() / static_cast<double>(o_.texts);
      });
      progress.advance(1);
    }
    for (const auto& text :
         needle_texts(*model, setup.data, o_.task, o_.tokens, o_.samples, setup.seed)) {
      read_all(
          text.context, text.question, LogitsAt::last, [&](Row& row, const ParallelReading& got) {
            row.right +=
                ranked_right(*model, got.state, got.logits, text) / static_cast<double>(o_.samples);
          });
      progress.advance(1);
    }
    progress.finish();
    return report(*model, rows, sink);
  }

 private:
  struct Row {
    std::string name;
    std::int64_t windows = 1, select = 0;
    double nll = 0, entropy = 0, right = 0;
  };

  static double pearson(std::span<const Row> rows) {
    const auto n = static_cast<double>(rows.size());
    double x = 0, y = 0, xx = 0, yy = 0, xy = 0;
    for (const auto& row : rows) {
      x += row.entropy / n;
      y += row.nll / n;
    }
    for (const auto& row : rows) {
      xx += (row.entropy - x) * (row.entropy - x);
      yy += (row.nll - y) * (row.nll - y);
      xy += (row.entropy - x) * (row.nll - y);
    }
    return xx * yy > 0 ? xy / std::sqrt(xx * yy) : 0;
  }

  SuiteReport report(const LanguageModel& model, const std::vector<Row>& rows,
                     std::size_t sink) const {
    SuiteReport out;
    auto& f = out.figures;
    f = {{"model", model.name}, {"tokens", o_.tokens}, {"rows", nlohmann::json::array()}};
    out.text = fmt::format(
        "{}, {} tokens in windows.\n\n| windows | | entropy, nats | NLL, nats a "
        "token | needles ranked right, % |\n|--:|---|--:|--:|--:|\n",
        model.name, o_.tokens);
    for (const auto& row : rows) {
      f["rows"].push_back({{"name", row.name},
                           {"windows", row.windows},
                           {"select", row.select},
                           {"entropy", row.entropy},
                           {"nll", row.nll},
                           {"ranked_right", row.right}});
      out.text += fmt::format("| {} | {} | {:.4f} | {:.4f} | {:.1f} |\n", row.windows, row.name,
                              row.entropy, row.nll, 100 * row.right);
    }
    const auto own = std::span(rows).first(sink);
    const auto& cut =
        *std::find_if(own.begin(), own.end(), [&](const Row& row) { return row.windows == o_.at; });
    const double lost = rows[0].right - cut.right, back = rows[sink + 1].right - cut.right;
    f["whole"] = f["rows"][0];
    f["own"] = f["rows"][static_cast<std::size_t>(&cut - rows.data())];
    f["sink"] = f["rows"][sink];
    f["sink_select"] = f["rows"][sink + 1];
    f["pearson"] = pearson(own);
    f["ranked_right_lost"] = lost;
    // Where nothing was lost there is nothing to give back.
    f["share_recovered"] = lost > 0 ? back / lost : 0;
    out.text += fmt::format(
        "\nPearson's correlation of entropy and NLL over numbers of windows: {:.3f}. Of {:.1f} "
        "points lost with {} windows, prefix and {} chosen windows give {:.1f} back.\n\n{} texts "
        "continued by {} tokens, {} asked about ({}).\n",
        f["pearson"].get<double>(), 100 * lost, o_.at, o_.select, 100 * back, o_.texts,
        o_.continuation, o_.samples, o_.task);
    return out;
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<Suite, ParallelContextSuite>("parallel_context",
                                     "texts read as windows apart: entropy, prediction and recall",
                                     "attention-entropy-2024");
}

}  // namespace mneme::suites::parallel_context
