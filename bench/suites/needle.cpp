// needle: whether a fact is still known, by where it stood in the text and how long the text is.
//
//   a sentence stands at `depths` of a text of `lengths`; the question on it is answered behind the compressed text, by
//   ranking the right answer among wrong ones of the same form (the sum of log-probabilities of its tokens) and by saying
//   it (greedily; right if what is said holds the answer)
//
// evidence  the share of the sentence's entries that attention could read when the question's last token was run
//           (bench/kv/evidence.h)
//
// spec      needle(task="needle", lengths="512,1024,2048", depths="0,25,50,75,100", question=after, together=false, stream=0)
// cost      one reading of each text, and one more for every pipeline that acts while it is read; the candidates of a
//           question are one pass. Together, a text holds a sentence at every depth, each on a key of its own, and is read
//           for all of them once; they are harder to tell apart then. stream > 0: a pass over so many tokens more for every
//           pipeline, whose mean negative log-likelihood stands beside, where the pipeline came to the end
// departs   with question=before the question's last token is fed after the compression, so that the first token of the
//           answer is predicted from what is kept
#include "mneme/core/registry.h"

#include "bench/kv/figure.h"
#include "bench/kv/forced.h"
#include "bench/kv/recall.h"
#include "bench/kv/rows.h"
#include "bench/kv/texts.h"
#include "bench/list.h"
#include "bench/suite.h"
#include <cmath>
#include <cstdint>
#include <fmt/format.h>
#include <string>
#include <vector>

namespace mneme::suites::needle {

using namespace mneme::bench;

class Needle final : public Suite {
 public:
  struct Options : KvOptions {
    std::string task = "needle", lengths = "512,1024,2048", depths = "0,25,50,75,100",
                question = "after";
    std::int64_t samples = 5, stream = 0;
    bool generate = true, together = false;
  };
  static void describe(Describe& d, Options& o) {
    describe_kv(d, o);
    d("task", o.task, "recall task whose texts are read, a spec");
    d("lengths", o.lengths, "tokens of context and question, one number or several");
    d("depths", o.depths, "where the evidence stands, percent of the text");
    d("samples", o.samples, at_least(1), "texts of each length and depth");
    d("question", o.question, one_of({"after", "before"}),
      "after: the text is compressed before the question is known; before: with the question in "
      "it");
    d("generate", o.generate, "let answers be said too, not only ranked");
    d("together", o.together,
      "one text serves all depths: it holds a sentence on another key at each, and is read once");
    d("stream", o.stream, within(0, 200'000),
      "tokens of a text that is predicted as it streams past; 0: none");
  }
  explicit Needle(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {
        "mneme bench needle --kv 'h2o | keep(entries=256)' --lengths 512,1024 --depths 10,50,90",
        "mneme bench needle --kv 'infllm(local=512)' --lengths 16384 --together true"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    static_cast<void>(parse_pipelines(o_.kv));  // before a model is loaded in vain
    lengths_ = listed_numbers("lengths", o_.lengths, 1);
    depths_ = listed_numbers("depths", o_.depths, 0);
    const auto stage = parse_stage(o_.task);
    const auto task = print(registry().find(RecallTask::kKind, stage.name).canonicalize(stage));
    std::vector<RecallCell> cells;
    for (const auto depth : depths_) {
      if (depth > 100)
        throw Error(Errc::usage, fmt::format("--depths: {} is more than 100 percent", depth));
      for (const auto length : lengths_)
        cells.push_back({task, length, static_cast<double>(depth) / 100});
    }
    const auto model = load_model(setup, o_);
    const auto pipelines = parse_pipelines(o_.kv, model.get());
    RecallSettings settings;
    settings.samples = o_.samples;
    settings.question_before = o_.question == "before";
    settings.together = o_.together;
    settings.generate = o_.generate;
    settings.seed = setup.seed;
    settings.context = context_options(setup, o_);
    const auto findings = measure_recall(*model, pipelines, cells, setup.data, settings);
    auto rows = recall_rows(pipelines, findings);
    if (o_.stream > 0) predict_stream(*model, pipelines, setup, rows);
    std::vector<HeatMap> maps;
    for (const auto score : {RecallScore::ranked, RecallScore::generated, RecallScore::evidence}) {
      if (score == RecallScore::generated && !o_.generate) continue;
      for (std::size_t p = 0; p < pipelines.size(); ++p)
        maps.push_back(heat_map(fmt::format("{}: {}", score_name(score), pipelines[p].name),
                                findings, p, score));
    }
    std::vector<std::string> columns, lines;
    for (const auto length : lengths_) columns.push_back(std::to_string(length));
    for (const auto depth : depths_) lines.push_back(fmt::format("{} %", depth));
    std::string further;
    for (const auto& map : maps) further += table_of(map, columns, lines);
    return kv_report({"needle", options_json<Needle>(o_), o_.question, setup.seed, model.get()}, o_,
                     rows, further,
                     heat_maps_svg(fmt::format("{}: {}", task, model->name), "tokens of the text",
                                   columns, "depth", lines, maps, pipelines.size()));
  }

 private:
  /// How a text is predicted that streams past, as `bench perplexity` tells.
  void predict_stream(const LanguageModel& model, const std::vector<Pipeline>& pipelines,
                      const SuiteSetup& setup, std::vector<KvRow>& rows) const {
    const auto text =
        sample_texts(setup.data, "test", *model.tokenizer, o_.stream, 1, setup.seed).front();
    for (std::size_t p = 0; p < pipelines.size(); ++p) {
      const auto found = measure_stream(model, pipelines[p], text.ids, context_options(setup, o_));
      // Of another part of the text it would be no comparison.
      if (found.refusal.empty())
        rows[p].scores.push_back({"NLL", estimated_mean(window_means(found.nll, o_.chunk)), 4});
    }
  }

  /// Cells run over lengths first.
  [[nodiscard]] HeatMap heat_map(const std::string& title, const RecallOfPipelines& findings,
                                 std::size_t pipeline, RecallScore score) const {
    HeatMap out{title, {}};
    for (std::size_t d = 0; d < depths_.size(); ++d) {
      out.values.emplace_back();
      for (std::size_t l = 0; l < lengths_.size(); ++l)
        out.values.back().push_back(cell_mean(findings, pipeline, d * lengths_.size() + l, score));
    }
    return out;
  }

  static std::string table_of(const HeatMap& map, const std::vector<std::string>& columns,
                              const std::vector<std::string>& lines) {
    auto out = fmt::format("### {}\n\n| depth |", map.title);
    for (const auto& column : columns) out += fmt::format(" {} tokens |", column);
    out += "\n|---|";
    for (std::size_t i = 0; i < columns.size(); ++i) out += "--:|";
    out += "\n";
    for (std::size_t r = 0; r < lines.size(); ++r) {
      out += fmt::format("| {} |", lines[r]);
      for (const auto value : map.values[r])
        out += std::isfinite(value) ? fmt::format(" {:.2f} |", value) : " |";
      out += "\n";
    }
    return out + "\n";
  }

  Options o_;
  std::vector<std::int64_t> lengths_, depths_;
};

void enrol(Registry& r) {
  r.add<Suite, Needle>("needle", "whether a fact is still known, by depth and length of the text");
}

}  // namespace mneme::suites::needle
