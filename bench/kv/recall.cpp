#include "bench/kv/recall.h"

#include "mneme/core/error.h"
#include "mneme/core/progress.h"
#include "mneme/core/registry.h"
#include "mneme/decode/batch.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "bench/kv/evidence.h"
#include "bench/kv/figure.h"
#include "bench/list.h"
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <fmt/format.h>
#include <limits>
#include <map>
#include <optional>

namespace mneme::bench {
namespace {

using nlohmann::json;

constexpr double kNotMeasured = std::numeric_limits<double>::quiet_NaN();

/// A sample as tokens. The question is what every pipeline is fed once the context is compressed.
struct TokenizedSample {
  std::vector<std::int32_t> context, question;
  std::vector<std::vector<std::int32_t>> candidates;
  std::vector<EntryRange> evidence;  ///< of the context
};

TokenizedSample tokenized(const RecallSample& sample, const Tokenizer& tokenizer,
                          bool question_before) {
  TokenizedSample out;
  out.context = tokenizer.encode(sample.context);
  out.question = tokenizer.encode(sample.question);
  out.evidence = tokens_at(tokenizer, out.context, static_cast<std::int64_t>(sample.context.size()),
                           sample.evidence);
  // Logits of the first token of an answer are to be those of the compressed context: a token is always left for it.
  if (question_before || out.question.empty()) {
    out.context.insert(out.context.end(), out.question.begin(), out.question.end());
    out.question.clear();
    if (out.context.size() < 2)
      throw Error(Errc::usage, "a text of less than two tokens cannot be asked about");
    out.question.push_back(out.context.back());
    out.context.pop_back();
  }
  for (const auto& candidate : sample.candidates)
    out.candidates.push_back(tokenizer.encode(candidate));
  return out;
}

double rank(const LanguageModel& model, const State& state, const at::Tensor& logits,
            const TokenizedSample& sample, bool by_steps) {
  if (sample.candidates.size() < 2) return kNotMeasured;
  const auto of = candidate_log_probabilities(model, state, logits, sample.candidates, by_steps);
  return std::all_of(of.begin() + 1, of.end(), [&](double other) { return of[0] > other; }) ? 1 : 0;
}

double say(const LanguageModel& model, State state, const at::Tensor& logits,
           const RecallTask& task, const RecallSample& sample, Footprint& footprint) {
  DecodeRowsOptions options;
  options.max_tokens = task.answer_tokens();
  const auto start = std::chrono::steady_clock::now();
  const auto said = decode::decode_rows(model, state, logits, options).at(0);
  const auto seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start);
  // The first token comes from logits that are there already, the end token of what ended takes a step.
  const auto steps = static_cast<std::int64_t>(said.ids.size()) - (said.ended ? 0 : 1);
  if (steps > 0) footprint.add_decoding(steps, seconds.count());
  return task.score(said.text, sample);
}

/// NaN where it was not measured.
double value_of(const RecallOutcome& outcome, RecallScore score) {
  if (!outcome.measured) return kNotMeasured;
  switch (score) {
    case RecallScore::ranked:
      return outcome.ranked;
    case RecallScore::generated:
      return outcome.generated;
    case RecallScore::evidence:
      break;
  }
  return outcome.evidence;
}

/// What is measured of a score, of both sides of a comparison where both are given.
struct Paired {
  std::vector<double> own, of_both, full_of_both;
};

Paired paired(const RecallOfPipelines& findings, std::size_t pipeline, RecallScore score,
              const std::function<bool(const RecallCell&)>& wanted = {}) {
  Paired out;
  for (std::size_t i = 0; i < findings.outcomes[pipeline].size(); ++i) {
    if (wanted && !wanted(findings.cells[i / static_cast<std::size_t>(findings.samples)])) continue;
    const auto value = [&](std::size_t p) { return value_of(findings.outcomes[p][i], score); };
    const auto own = value(pipeline), full = value(0);
    if (!std::isnan(own)) out.own.push_back(own);
    if (std::isnan(own) || std::isnan(full)) continue;
    out.of_both.push_back(own);
    out.full_of_both.push_back(full);
  }
  return out;
}

constexpr std::array kScores = {RecallScore::ranked, RecallScore::generated, RecallScore::evidence};

double mean_of(std::span<const double> x) {
  double sum = 0;
  for (const auto value : x) sum += value;
  return x.empty() ? kNotMeasured : sum / static_cast<double>(x.size());
}

/// A text that is read once, and the cells whose questions are asked behind it.
struct SharedText {
  std::vector<std::size_t> cells;
  std::int64_t sample = 0;
};

/// Every sample of every cell, those of one text together.
std::vector<SharedText> shared_texts(const std::vector<RecallCell>& cells,
                                     const RecallSettings& settings) {
  std::vector<std::vector<std::size_t>> groups;
  for (std::size_t c = 0; c < cells.size(); ++c) {
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const auto& group) {
      const auto& first = cells[group.front()];
      return settings.together && first.task == cells[c].task && first.tokens == cells[c].tokens;
    });
    if (same == groups.end()) {
      groups.push_back({c});
    } else {
      same->push_back(c);
    }
  }
  std::vector<SharedText> out;
  for (const auto& group : groups) {
    for (std::int64_t s = 0; s < settings.samples; ++s) out.push_back({group, s});
  }
  return out;
}

/// The samples of a text, one of each of its cells. Chance depends on the text alone: the same one is drawn whatever else
/// is measured with it.
std::vector<RecallSample> drawn(const RecallTask& task, const std::vector<RecallCell>& cells,
                                const SharedText& text, const RecallSettings& settings,
                                const Tokenizer& tokenizer) {
  const auto& first = cells[text.cells.front()];
  const auto chance_of = [&](double depth) {
    return Generator(settings.seed)
        .split(static_cast<std::uint64_t>(first.tokens))
        .split(static_cast<std::uint64_t>(std::llround(1000 * (depth + 1))))
        .split(static_cast<std::uint64_t>(text.sample));
  };
  if (!settings.together) {
    auto chance = chance_of(first.depth);
    return {task.draw({first.tokens, first.depth}, tokenizer, chance)};
  }
  std::vector<double> depths;
  for (const auto cell : text.cells) depths.push_back(cells[cell].depth);
  auto chance = chance_of(-1);
  return task.draw_together(first.tokens, depths, tokenizer, chance);
}

/// Means by a property of cells, a column each.
std::string means_by(const std::string& title, const std::vector<Pipeline>& pipelines,
                     const RecallOfPipelines& findings,
                     const std::function<std::string(const RecallCell&)>& property) {
  std::vector<std::string> columns;
  for (const auto& cell : findings.cells) {
    auto name = property(cell);
    if (std::find(columns.begin(), columns.end(), name) == columns.end())
      columns.push_back(std::move(name));
  }
  if (columns.size() < 2) return "";
  std::string out = fmt::format("### {}\n\n| pipeline | score |", title);
  for (const auto& column : columns) out += fmt::format(" {} |", column);
  out += "\n|---|---|";
  for (std::size_t i = 0; i < columns.size(); ++i) out += "--:|";
  out += "\n";
  for (std::size_t p = 0; p < pipelines.size(); ++p) {
    for (const auto score : kScores) {
      std::string line;
      bool any = false;
      for (const auto& column : columns) {
        const auto mean = mean_of(paired(findings, p, score, [&](const RecallCell& cell) {
                                    return property(cell) == column;
                                  }).own);
        any = any || !std::isnan(mean);
        line += std::isnan(mean) ? " |" : fmt::format(" {:.3f} |", mean);
      }
      if (any)
        out +=
            fmt::format("| {} | {} |{}\n", table_cell(pipelines[p].name), score_name(score), line);
    }
  }
  return out + "\n";
}

}  // namespace

std::vector<double> candidate_log_probabilities(
    const LanguageModel& model, const State& state, const at::Tensor& logits,
    std::span<const std::vector<std::int32_t>> candidates, bool by_steps) {
  const auto first = logits.to(at::kDouble).log_softmax(-1);
  std::vector<double> out;
  std::vector<std::int64_t> lengths;
  std::int64_t longest = 0;
  for (const auto& candidate : candidates) {
    if (candidate.empty()) throw Error(Errc::invalid, "a candidate of no tokens cannot be ranked");
    out.push_back(first[0][candidate[0]].item<double>());
    lengths.push_back(static_cast<std::int64_t>(candidate.size()) - 1);
    longest = std::max(longest, lengths.back());
  }
  if (longest == 0) return out;
  if (by_steps) {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      auto behind = state.fork();
      for (std::size_t t = 1; t < candidates[i].size(); ++t) {
        const auto log_p =
            model.run({candidates[i][t - 1]}, behind).logits.to(at::kDouble).log_softmax(-1);
        out[i] += log_p[0][candidates[i][t]].item<double>();
      }
    }
    return out;
  }
  // Candidates of one token have nothing to run.
  std::vector<std::size_t> running;
  std::vector<std::int64_t> places, rows;
  std::vector<std::int64_t> next;  // token whose probability each place gives
  Batch batch;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (lengths[i] == 0) continue;
    for (std::int64_t t = 0; t < lengths[i]; ++t) {
      places.push_back(static_cast<std::int64_t>(running.size()) * longest + t);
      next.push_back(candidates[i][static_cast<std::size_t>(t + 1)]);
    }
    running.push_back(i);
    rows.push_back(0);
    batch.lengths.push_back(lengths[i]);
  }
  batch.ids = at::zeros({static_cast<std::int64_t>(running.size()), longest}, at::kLong);
  for (std::size_t row = 0; row < running.size(); ++row) {
    const auto& candidate = candidates[running[row]];
    std::copy(
        candidate.begin(), candidate.end() - 1,
        batch.ids.mutable_data_ptr<std::int64_t>() + static_cast<std::int64_t>(row) * longest);
  }
  batch.logits_at = LogitsAt::chosen;
  batch.chosen = at::tensor(places, at::kLong);
  batch.compute = model.compute;
  auto behind = state.select(rows);
  const auto log_p = model.model->forward(batch, behind)
                         .logits.to(at::kDouble)
                         .log_softmax(-1)
                         .gather(1, at::tensor(next, at::kLong).unsqueeze(1))
                         .contiguous();
  for (std::size_t n = 0; n < places.size(); ++n)
    out[running[static_cast<std::size_t>(places[n] / longest)]] +=
        log_p.const_data_ptr<double>()[n];
  return out;
}

std::string_view score_name(RecallScore score) {
  switch (score) {
    case RecallScore::ranked:
      return "ranking";
    case RecallScore::generated:
      return "generation";
    case RecallScore::evidence:
      break;
  }
  return "evidence";
}

RecallOfPipelines measure_recall(const LanguageModel& model, const std::vector<Pipeline>& pipelines,
                                 const std::vector<RecallCell>& cells,
                                 const std::filesystem::path& data,
                                 const RecallSettings& settings) {
  const c10::InferenceMode inference;
  if (settings.together && settings.question_before)
    throw Error(Errc::usage,
                "a text that is asked several questions is compressed before they are known: "
                "question=after");
  RecallOfPipelines out;
  out.cells = cells;
  out.samples = settings.samples;
  const auto all = cells.size() * static_cast<std::size_t>(settings.samples);
  out.outcomes.assign(pipelines.size(), std::vector<RecallOutcome>(all));
  out.footprints.resize(pipelines.size());
  out.refusals.resize(pipelines.size());
  const auto texts = shared_texts(cells, settings);
  std::map<std::string, std::unique_ptr<RecallTask>> tasks;
  for (const auto& text : texts) {
    const auto& name = cells[text.cells.front()].task;
    if (!tasks.contains(name)) tasks[name] = registry().make<RecallTask>(name, data);
    // A length that holds no sample of a task is told now, not after all that comes before it.
    if (text.sample == 0)
      static_cast<void>(drawn(*tasks.at(name), cells, text, settings, *model.tokenizer));
  }
  Progress progress("asking", static_cast<std::int64_t>(all * pipelines.size()), "answers");
  for (const auto& text : texts) {
    const auto& cell = cells[text.cells.front()];
    const auto& task = *tasks.at(cell.task);
    const auto samples = drawn(task, cells, text, settings, *model.tokenizer);
    std::vector<TokenizedSample> ids;
    for (const auto& sample : samples)
      ids.push_back(tokenized(sample, *model.tokenizer, settings.question_before));
    ContextReader reader(model, pipelines, ids.front().context, settings.context);
    for (std::size_t p = 0; p < pipelines.size(); ++p) {
      auto& footprint = out.footprints[p];
      try {
        const auto context = reader.read(pipelines[p]);
        bool answered = false;
        for (std::size_t i = 0; i < samples.size(); ++i) {
          auto& outcome =
              out.outcomes[p][text.cells[i] * static_cast<std::size_t>(settings.samples) +
                              static_cast<std::size_t>(text.sample)];
          auto state = context.state.fork();
          at::Tensor logits;
          feed(model, state, ids[i].question, LogitsAt::last,
               behind_context(settings.context, pipelines[p]),
               [&](const at::Tensor& last) { logits = last; });
          outcome.evidence = evidence_recall(state, ids[i].evidence);
          outcome.ranked = rank(model, state, logits, ids[i], acts_at_steps(pipelines[p]));
          outcome.generated =
              settings.generate ? say(model, std::move(state), logits, task, samples[i], footprint)
                                : kNotMeasured;
          outcome.bytes = context.bytes;
          outcome.measured = answered = true;
        }
        if (answered) footprint.add(context);
      } catch (const Error& error) {
        auto reason = refusal_of(error);
        if (out.refusals[p].empty())
          out.refusals[p] = fmt::format("{} ({} tokens)", reason, cell.tokens);
      }
      progress.advance(static_cast<std::int64_t>(samples.size()));
    }
  }
  return out;
}

double cell_mean(const RecallOfPipelines& findings, std::size_t pipeline, std::size_t cell,
                 RecallScore score) {
  const auto samples = static_cast<std::size_t>(findings.samples);
  std::vector<double> values;
  for (std::size_t s = 0; s < samples; ++s) {
    const auto value = value_of(findings.outcomes[pipeline][cell * samples + s], score);
    if (!std::isnan(value)) values.push_back(value);
  }
  return mean_of(values);
}

namespace {

/// Means over the samples of the cells that are wanted.
json means_json(const RecallOfPipelines& findings, std::size_t pipeline,
                const std::function<bool(const RecallCell&)>& wanted) {
  const auto number = [](double mean) { return std::isnan(mean) ? json(nullptr) : json(mean); };
  json out = json::object();
  for (const auto score : kScores)
    out[std::string(score_name(score))] =
        number(mean_of(paired(findings, pipeline, score, wanted).own));
  std::vector<double> bytes;
  for (std::size_t i = 0; i < findings.outcomes[pipeline].size(); ++i) {
    const auto& outcome = findings.outcomes[pipeline][i];
    if (outcome.measured && wanted(findings.cells[i / static_cast<std::size_t>(findings.samples)]))
      bytes.push_back(static_cast<double>(outcome.bytes));
  }
  out["bytes"] = number(mean_of(bytes));
  return out;
}

}  // namespace

std::vector<KvRow> recall_rows(const std::vector<Pipeline>& pipelines,
                               const RecallOfPipelines& findings) {
  std::vector<KvRow> out;
  for (std::size_t p = 0; p < pipelines.size(); ++p) {
    KvRow row;
    row.pipeline = pipelines[p].name;
    row.refusal = findings.refusals[p];
    row.footprint = findings.footprints[p];
    for (const auto score : {RecallScore::ranked, RecallScore::generated}) {
      const auto values = paired(findings, p, score);
      if (values.own.empty()) continue;
      row.scores.push_back({std::string(score_name(score)), estimated_mean(values.own)});
      row.scores.push_back({fmt::format("{} - full", score_name(score)),
                            p == 0 ? Estimate{kNotMeasured, kNotMeasured, kNotMeasured}
                                   : estimated_difference(values.of_both, values.full_of_both)});
    }
    // The full cache holds all: a difference to it would say nothing.
    if (!row.scores.empty())
      row.scores.push_back({std::string(score_name(RecallScore::evidence)),
                            estimated_mean(paired(findings, p, RecallScore::evidence).own)});
    auto cells = json::array(), lengths = json::array();
    std::vector<std::int64_t> told;
    for (const auto& cell : findings.cells) {
      json one = {{"task", cell.task},
                  {"tokens", cell.tokens},
                  {"depth", cell.depth < 0 ? json(nullptr) : json(cell.depth)}};
      one.update(means_json(findings, p, [&](const RecallCell& other) { return &other == &cell; }));
      cells.push_back(std::move(one));
      if (std::find(told.begin(), told.end(), cell.tokens) != told.end()) continue;
      told.push_back(cell.tokens);
      one = {{"tokens", cell.tokens}};
      one.update(means_json(findings, p,
                            [&](const RecallCell& other) { return other.tokens == cell.tokens; }));
      lengths.push_back(std::move(one));
    }
    row.more = {{"cells", std::move(cells)}, {"lengths", std::move(lengths)}};
    out.push_back(std::move(row));
  }
  return out;
}

void describe_recall(Describe& d, RecallOptions& o) {
  describe_kv(d, o);
  d("tasks", o.tasks, "recall tasks, specs separated by ';' (`mneme components recall_task`)");
  d("lengths", o.lengths, "tokens of context and question, one number or several");
  d("samples", o.samples, at_least(1), "texts of each task and length");
  d("question", o.question, one_of({"after", "before"}),
    "after: the text is compressed before the question is known; before: with the question in it");
  d("generate", o.generate, "let answers be said too, not only ranked");
}

SuiteReport run_recall_suite(const SuiteSetup& setup, const RecallOptions& options,
                             const std::string& suite, const json& options_json) {
  static_cast<void>(parse_pipelines(options.kv));  // before a model is loaded in vain
  const auto lengths = listed_numbers("lengths", options.lengths, 1);
  std::vector<RecallCell> cells;
  for (const auto& chain : parse_chains(options.tasks)) {
    if (chain.size() != 1)
      throw Error(Errc::usage,
                  fmt::format("--tasks: '{}' is a chain; separate tasks by ';'", print(chain)));
    const auto task =
        print(registry().find(RecallTask::kKind, chain[0].name).canonicalize(chain[0]));
    for (const auto length : lengths) cells.push_back({task, length});
  }
  const auto model = load_model(setup, options);
  const auto pipelines = parse_pipelines(options.kv, model.get());
  RecallSettings settings;
  settings.samples = options.samples;
  settings.question_before = options.question == "before";
  settings.generate = options.generate;
  settings.seed = setup.seed;
  settings.context = context_options(setup, options);
  const auto findings = measure_recall(*model, pipelines, cells, setup.data, settings);
  const auto rows = recall_rows(pipelines, findings);
  std::vector<ScatterPanel> panels;
  for (const auto score : {RecallScore::ranked, RecallScore::generated}) {
    ScatterPanel panel{std::string(score_name(score)), {}};
    for (const auto& row : rows) {
      for (const auto& value : row.scores) {
        if (value.name == score_name(score))
          panel.points.push_back({row.pipeline, row.footprint.bytes(), value.value.value,
                                  value.value.low, value.value.high});
      }
    }
    if (!panel.points.empty()) panels.push_back(std::move(panel));
  }
  return kv_report(
      {suite, options_json, options.question, setup.seed, model.get()}, options, rows,
      means_by("By task", pipelines, findings,
               [](const RecallCell& cell) { return table_cell(cell.task); }) +
          means_by("By length", pipelines, findings,
                   [](const RecallCell& cell) { return fmt::format("{} tokens", cell.tokens); }),
      scatter_svg(fmt::format("{}: {}", suite, model->name), "resident bytes, mean", panels));
}

}  // namespace mneme::bench
