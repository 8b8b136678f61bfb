// counterfactual: whether a model believes what it reads against what it knows, by how it can read it.
//
//   a text holds `facts` sentences such as "The capital of France is Lyon." between the sentences of a novel; asked is
//   "The capital of France is"
//
//   margin     = ln p(edited) - ln p(original), sums over the tokens of the answer, mean over facts
//   recovered  = (margin - margin of closed_book) / (margin of in_context - margin of closed_book)
//
//   closed_book   nothing is read
//   in_context    all of the text is attended to
//   emt           every layer reads the `topk` memories that each query finds closest (kv/emt.cpp), memories at position 0,
//                 queries at their own behind the window, as the paper has it
//   one_layer     the layer in the middle alone does
//   near          as emt, memories and queries as far apart as the window reaches
//   own_places    as emt, memories and queries standing at their own positions
//
// The text is run once, in one piece, and its entries are placed into the banks of all: so what is compared is reading
// alone. Behind the facts stands so much prose that none of them is in the window of the question.
//
// spec      counterfactual(facts=60, tokens=2048, topk=10, local=64)
// needs     softmax attention with rotary positions; novels in the data folder, else prose is generated
// cost      a pass of `tokens`, and a question a fact for each of six
// source    Klett & Ahle 2024, arXiv:2406.02332
// departs   the paper edits the answers of questions on Wikipedia; here capitals give way to other cities of their country
// card      papers/extended-mind-2024.toml
#include "mneme/core/progress.h"
#include "mneme/core/registry.h"
#include "mneme/kv/plan.h"
#include "mneme/tasks/haystack.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "bench/kv/context.h"
#include "bench/kv/evidence.h"
#include "bench/kv/recall.h"
#include "bench/kv/rows.h"
#include "bench/suite.h"
#include <algorithm>
#include <array>
#include <cstdint>
#include <fmt/format.h>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::suites::counterfactual {

using namespace mneme::bench;
using nlohmann::json;

struct Capital {
  std::string_view country, original, edited;
};

constexpr std::array<Capital, 64> kCapitals = {{
    {"France", "Paris", "Lyon"},
    {"Germany", "Berlin", "Hamburg"},
    {"Italy", "Rome", "Milan"},
    {"Spain", "Madrid", "Seville"},
    {"Portugal", "Lisbon", "Porto"},
    {"England", "London", "Manchester"},
    {"Scotland", "Edinburgh", "Glasgow"},
    {"Ireland", "Dublin", "Cork"},
    {"Norway", "Oslo", "Bergen"},
    {"Sweden", "Stockholm", "Gothenburg"},
    {"Denmark", "Copenhagen", "Aarhus"},
    {"Finland", "Helsinki", "Tampere"},
    {"Poland", "Warsaw", "Krakow"},
    {"Austria", "Vienna", "Salzburg"},
    {"Switzerland", "Bern", "Zurich"},
    {"Belgium", "Brussels", "Antwerp"},
    {"the Netherlands", "Amsterdam", "Rotterdam"},
    {"Greece", "Athens", "Patras"},
    {"Turkey", "Ankara", "Istanbul"},
    {"Russia", "Moscow", "Kazan"},
    {"Ukraine", "Kyiv", "Odessa"},
    {"Romania", "Bucharest", "Timisoara"},
    {"Bulgaria", "Sofia", "Varna"},
    {"Hungary", "Budapest", "Debrecen"},
    {"the Czech Republic", "Prague", "Brno"},
    {"Slovakia", "Bratislava", "Kosice"},
    {"Croatia", "Zagreb", "Dubrovnik"},
    {"Serbia", "Belgrade", "Novi Sad"},
    {"Egypt", "Cairo", "Alexandria"},
    {"Morocco", "Rabat", "Marrakesh"},
    {"Algeria", "Algiers", "Oran"},
    {"Nigeria", "Abuja", "Lagos"},
    {"Kenya", "Nairobi", "Mombasa"},
    {"Ghana", "Accra", "Kumasi"},
    {"Ethiopia", "Addis Ababa", "Gondar"},
    {"Senegal", "Dakar", "Touba"},
    {"Israel", "Jerusalem", "Haifa"},
    {"Jordan", "Amman", "Aqaba"},
    {"Iraq", "Baghdad", "Basra"},
    {"Iran", "Tehran", "Shiraz"},
    {"Saudi Arabia", "Riyadh", "Jeddah"},
    {"India", "New Delhi", "Mumbai"},
    {"Pakistan", "Islamabad", "Karachi"},
    {"Nepal", "Kathmandu", "Pokhara"},
    {"Bangladesh", "Dhaka", "Chittagong"},
    {"China", "Beijing", "Shanghai"},
    {"Japan", "Tokyo", "Osaka"},
    {"South Korea", "Seoul", "Busan"},
    {"Thailand", "Bangkok", "Phuket"},
    {"Vietnam", "Hanoi", "Danang"},
    {"Indonesia", "Jakarta", "Surabaya"},
    {"the Philippines", "Manila", "Davao"},
    {"Australia", "Canberra", "Sydney"},
    {"New Zealand", "Wellington", "Auckland"},
    {"Canada", "Ottawa", "Toronto"},
    {"the United States", "Washington", "Chicago"},
    {"Cuba", "Havana", "Camaguey"},
    {"Colombia", "Bogota", "Medellin"},
    {"Peru", "Lima", "Cusco"},
    {"Chile", "Santiago", "Valparaiso"},
    {"Argentina", "Buenos Aires", "Cordoba"},
    {"Venezuela", "Caracas", "Maracaibo"},
    {"Ecuador", "Quito", "Guayaquil"},
    {"Kazakhstan", "Astana", "Almaty"},
}};

/// A way to read the text, and what came of it.
struct Condition {
  std::string name, spec;  ///< spec: the pipeline; empty: none
  State state;
  std::vector<double> margins;  ///< of every fact
};

class Counterfactual final : public Suite {
 public:
  struct Options {
    std::int64_t facts = 60, tokens = 2048, topk = 10, local = 64;
  };
  static void describe(Describe& d, Options& o) {
    d("facts", o.facts, within(1, static_cast<double>(kCapitals.size())),
      "sentences in the text, and questions");
    d("tokens", o.tokens, at_least(32), "of the prose with the facts");
    d("topk", o.topk, at_least(1), "memories that a query reads");
    d("local", o.local, at_least(1), "entries of the window that reads memories");
  }
  explicit Counterfactual(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {"mneme bench counterfactual --facts 20"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    const c10::InferenceMode inference;
    const auto model = load_model(setup, {});
    const auto text = text_of(*model->tokenizer, setup);
    auto conditions = read(*model, text.ids, setup);
    Progress progress("asking", o_.facts, "facts");
    for (const auto& fact : text.facts) {
      const auto question =
          model->tokenizer->encode(fmt::format("\n\nThe capital of {} is", fact.country));
      const std::vector<std::vector<std::int32_t>> answers = {
          model->tokenizer->encode(fmt::format(" {}", fact.edited)),
          model->tokenizer->encode(fmt::format(" {}", fact.original))};
      for (auto& condition : conditions) {
        setup.between();
        auto state = condition.state.fork();
        const auto logits = model->run(question, state).logits;
        const auto log_p = candidate_log_probabilities(*model, state, logits, answers);
        condition.margins.push_back(log_p[0] - log_p[1]);
      }
      progress.advance(1);
    }
    progress.finish();
    return report(*model, setup, static_cast<std::int64_t>(text.ids.size()), conditions);
  }

 private:
  // Entries that leave the window become memories by so many, and until then are read whatever is asked.
  static constexpr std::int64_t kRemainder = 64;

  struct Text {
    std::vector<std::int32_t> ids;
    std::vector<Capital> facts;
  };

  [[nodiscard]] Text text_of(const Tokenizer& tokenizer, const SuiteSetup& setup) const {
    Generator generator(setup.seed);
    Text out;
    std::vector<tasks::Fact> placed;
    for (const auto i :
         tasks::distinct(generator, kCapitals.size(), static_cast<std::size_t>(o_.facts))) {
      out.facts.push_back(kCapitals.at(i));
      placed.push_back({fmt::format("The capital of {} is {}.", out.facts.back().country,
                                    out.facts.back().edited),
                        generator.uniform()});
    }
    std::vector<std::string> named = {"capital"};
    for (const auto& one : kCapitals) {
      for (const auto name : {one.country, one.original, one.edited}) named.emplace_back(name);
    }
    const tasks::Prose prose(setup.data);
    const auto filler = prose.filler(generator, tasks::without(std::move(named)));
    const tasks::Frame frame{"counterfactual", "", " ", "", ""};
    const auto text = tasks::fill(frame, placed, filler, o_.tokens, tokenizer);
    // Sentences are as many as fit: half as much again is more than has to be left.
    const auto tail = o_.local + kRemainder;
    const auto behind =
        tasks::fill(frame, {}, filler, tail + std::max(tail / 2, kRemainder), tokenizer);
    const auto context = text.context + " " + behind.context;
    out.ids = tokenizer.encode(context);
    for (const auto& range :
         tokens_at(tokenizer, out.ids, static_cast<std::int64_t>(context.size()), text.facts)) {
      if (range.end > static_cast<std::int64_t>(out.ids.size()) - tail)
        throw Error(Errc::usage, "--local: the text behind the facts is too short for this window");
    }
    return out;
  }

  [[nodiscard]] std::vector<Condition> read(const LanguageModel& model,
                                            const std::vector<std::int32_t>& ids,
                                            const SuiteSetup& setup) const {
    const auto emt = [&](std::string_view more) {
      return fmt::format("emt(topk={}, local={}, chunk={}{})", o_.topk, o_.local, o_.local, more);
    };
    std::vector<Condition> out;
    out.push_back({"closed_book", "", model.model->start(1), {}});
    auto full = model.model->start(1);
    ContextOptions options;
    options.between = setup.between;
    feed(model, full, ids, LogitsAt::none, options);
    const auto from = kv_stores(std::as_const(full));
    const auto tokens = static_cast<std::int64_t>(ids.size());
    const auto middle = model.model->shape().layers / 2;
    for (const auto& [name, spec] : std::vector<std::pair<std::string, std::string>>{
             {"emt", emt(", place=zero")},
             {"one_layer", emt(fmt::format(", place=zero, layers=[{}]", middle))},
             {"near", emt("")},
             {"own_places", emt(", place=original")}}) {
      const auto pipeline = parse_pipelines(spec, &model).back();
      Condition condition{name, pipeline.name, model.model->start(1), {}};
      use_plan(condition.state, pipeline.plan);
      // Memories at position 0 are another text than the one that is read: that begins with the window.
      const auto begin = spec.find("place=zero") == std::string::npos ? 0 : o_.local - tokens;
      for (std::size_t layer = 0; auto* store : kv_stores(condition.state))
        store->place(0, from.at(layer++)->read(0, 0, tokens), begin, model.compute);
      condition.state.positions[0] = begin + tokens;
      out.push_back(std::move(condition));
    }
    out.insert(out.begin() + 1, Condition{"in_context", "", std::move(full), {}});
    return out;
  }

  SuiteReport report(const LanguageModel& model, const SuiteSetup& setup, std::int64_t tokens,
                     const std::vector<Condition>& conditions) const {
    const auto figure = [](const Estimate& x) {
      return json{{"value", x.value}, {"low", x.low}, {"high", x.high}};
    };
    const auto& closed = conditions[0].margins;
    const auto gain_of = [&](const Condition& condition) {
      std::vector<double> out;
      for (std::size_t i = 0; i < closed.size(); ++i)
        out.push_back(condition.margins[i] - closed[i]);
      return out;
    };
    const Bootstrap bootstrap(closed.size());
    SuiteReport out;
    out.figures = {{"suite", "counterfactual"}, {"options", options_json<Counterfactual>(o_)},
                   {"model", model.name},       {"model_digest", model.digest},
                   {"seed", setup.seed},        {"tokens", tokens}};
    out.text = fmt::format(
        "{}: {} facts in {} tokens.\n\n| read | margin, nats | edited preferred, % | recovered "
        "|\n|---|--:|--:|--:|\n",
        model.name, o_.facts, tokens);
    for (const auto& condition : conditions) {
      const auto margin = bootstrap.mean(condition.margins);
      const auto preferred =
          static_cast<double>(std::count_if(condition.margins.begin(), condition.margins.end(),
                                            [](double x) { return x > 0; })) /
          static_cast<double>(condition.margins.size());
      out.figures["conditions"][condition.name] = {{"pipeline", condition.spec},
                                                   {"margin", figure(margin)},
                                                   {"edited_preferred", preferred}};
      out.text += fmt::format("| {} | {:.3f} [{:.3f}, {:.3f}] | {:.1f} |", condition.name,
                              margin.value, margin.low, margin.high, 100 * preferred);
      if (condition.spec.empty()) {
        out.text += " |\n";
        continue;
      }
      const auto recovered = bootstrap.ratio(gain_of(condition), gain_of(conditions[1]));
      out.figures["recovered"][condition.name] = figure(recovered);
      out.text += fmt::format(" {:.3f} [{:.3f}, {:.3f}] |\n", recovered.value, recovered.low,
                              recovered.high);
    }
    return out;
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<Suite, Counterfactual>("counterfactual",
                               "whether what is read is believed against what is known",
                               "extended-mind-2024");
}

}  // namespace mneme::suites::counterfactual
