// fidelity: how much a pipeline that compresses keys and values changes what the model says next.
//
//   a context of `tokens` is read and compressed; the text's own continuation y is then shown token by token (teacher
//   forcing), and at each token the prediction q behind the compressed context is compared with the full cache's, p:
//   KL(p || q) = sum_v p_v (ln p_v - ln q_v), whether both think the same token most likely, and ln p(y) - ln q(y)
//
// spec      fidelity(tokens="1024,2048", continuation=64)
// needs     books in the data folder; where there are none the text is made up, and KL says little of real text
// cost      one reading of each context, and one more for every pipeline that acts while it is read
// departs   the question always comes after the compression: the continuation is not known to it
#include "mneme/core/registry.h"

#include "bench/kv/figure.h"
#include "bench/kv/forced.h"
#include "bench/kv/rows.h"
#include "bench/kv/texts.h"
#include "bench/list.h"
#include "bench/suite.h"
#include <algorithm>
#include <cstdint>
#include <fmt/format.h>
#include <string>
#include <vector>

namespace mneme::suites::fidelity {

using namespace mneme::bench;

class Fidelity final : public Suite {
 public:
  struct Options : KvOptions {
    std::string tokens = "1024,2048", split = "test";
    std::int64_t continuation = 64, samples = 10, decode = 16;
  };
  static void describe(Describe& d, Options& o) {
    describe_kv(d, o);
    d("tokens", o.tokens, "tokens of a context, one number or several");
    d("continuation", o.continuation, at_least(1), "predictions that are compared behind each");
    d("samples", o.samples, at_least(1), "contexts of each length, from different places of books");
    d("split", o.split, one_of({"test", "dev", "train"}), "whose books, by author");
    d("decode", o.decode, at_least(0), "tokens that are decoded behind each context, for the time");
  }
  explicit Fidelity(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {
        "mneme bench fidelity --kv 'quantize(bits=4); snapkv | keep(ratio=0.25, when=end)' "
        "--tokens 512,1024 --plot fidelity.svg"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    static_cast<void>(parse_pipelines(o_.kv));  // before a model is loaded in vain
    const auto lengths = listed_numbers("tokens", o_.tokens, 1);
    const auto model = load_model(setup, o_);
    const auto pipelines = parse_pipelines(o_.kv, model.get());
    std::vector<KvRow> rows;
    std::vector<ScatterPanel> panels{{"KL(full || pipeline), nats", {}},
                                     {"share of equal first tokens", {}}};
    std::string sources;
    for (const auto length : lengths) {
      std::vector<std::vector<std::int32_t>> texts;
      for (auto& sample : sample_texts(setup.data, o_.split, *model->tokenizer,
                                       length + o_.continuation + 1, o_.samples, setup.seed)) {
        if (sources.find(sample.source) == std::string::npos)
          sources += (sources.empty() ? "" : ", ") + sample.source;
        texts.push_back(std::move(sample.ids));
      }
      const auto part = fmt::format("{} tokens", length);
      const auto found = measure_continuations(*model, pipelines, texts, length, o_.decode,
                                               context_options(setup, o_));
      for (auto& row : continuation_rows(pipelines, found, part)) {
        row.more["tokens"] = length;
        for (std::size_t i = 0; i < panels.size() && i < row.scores.size(); ++i) {
          const auto& e = row.scores[i].value;
          panels[i].points.push_back({row.pipeline, row.footprint.bytes(), e.value, e.low, e.high});
        }
        rows.push_back(std::move(row));
      }
    }
    return kv_report({"fidelity", options_json<Fidelity>(o_), "after", setup.seed, model.get()}, o_,
                     rows,
                     fmt::format("{} texts a length, {} predictions each, from: {}.\n", o_.samples,
                                 o_.continuation, sources),
                     scatter_svg(fmt::format("fidelity: {}, {} tokens", model->name, o_.tokens),
                                 "resident bytes, mean", panels));
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<Suite, Fidelity>("fidelity",
                         "what compressing keys and values changes in what a model says next");
}

}  // namespace mneme::suites::fidelity
