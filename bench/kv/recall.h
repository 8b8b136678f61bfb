// Recall: what pipelines still know of a generated text, by ranking candidates and by generation.
#pragma once

#include "mneme/core/state.h"
#include "mneme/models/language_model.h"
#include "mneme/tasks/recall.h"

#include <ATen/core/Tensor.h>

#include "bench/kv/context.h"
#include "bench/kv/pipelines.h"
#include "bench/kv/rows.h"
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::bench {

/// The log-probability of each candidate, the sum over its tokens, behind a state of one row whose last token gave
/// `logits` [1,V]. All candidates run in one pass, as rows of a fork, or token by token where steps are to be seen. Throws
/// Error(invalid) for a candidate of no tokens.
[[nodiscard]] std::vector<double> candidate_log_probabilities(
    const LanguageModel& model, const State& state, const at::Tensor& logits,
    std::span<const std::vector<std::int32_t>> candidates, bool by_steps = false);

/// Samples of one kind: they differ in chance alone.
struct RecallCell {
  std::string task;         ///< spec of the recall task
  std::int64_t tokens = 0;  ///< of context and question
  double depth = -1;        ///< where the evidence stands; below 0: anywhere
};

/// What a pipeline made of one sample.
struct RecallOutcome {
  double ranked =
      0;  ///< 1 if the right answer is more probable than every other candidate; NaN: none to rank
  double generated =
      0;  ///< what the task's scorer gives for what was said; NaN: nothing was generated
  bool measured = false;
  /// Share of the evidence that could be read (bench/kv/evidence.h); NaN: it cannot be told.
  double evidence = std::numeric_limits<double>::quiet_NaN();
  std::int64_t bytes = 0;  ///< resident behind the context
};

struct RecallSettings {
  std::int64_t samples = 5;  ///< of each cell
  bool question_before =
      false;  ///< the question is part of what is compressed, but for its last token
  /// Cells that differ in depth alone share their texts: each is read once and asked for all of them.
  bool together = false;
  bool generate = true;
  std::uint64_t seed = 0;
  ContextOptions context;
};

/// Outcomes of all pipelines on the same samples.
struct RecallOfPipelines {
  std::vector<RecallCell> cells;
  std::int64_t samples = 0;
  std::vector<std::vector<RecallOutcome>> outcomes;  ///< [pipelines][cells * samples]
  std::vector<Footprint> footprints;                 ///< of each pipeline
  std::vector<std::string> refusals;                 ///< of each pipeline, the first; empty: none
};

/// Draws the samples of all cells and lets every pipeline answer them. Throws Error(usage) as the tasks do, and where a text
/// that is asked several questions should be compressed with the question in it.
RecallOfPipelines measure_recall(const LanguageModel& model, const std::vector<Pipeline>& pipelines,
                                 const std::vector<RecallCell>& cells,
                                 const std::filesystem::path& data, const RecallSettings& settings);

/// A row a pipeline: means over all samples, the difference to the full cache on the same samples, and in `more` the means
/// of every cell and of every length.
std::vector<KvRow> recall_rows(const std::vector<Pipeline>& pipelines,
                               const RecallOfPipelines& findings);

/// Which of the scores.
enum class RecallScore { ranked, generated, evidence };

/// "ranking", "generation", "evidence".
[[nodiscard]] std::string_view score_name(RecallScore score);

/// Mean over the samples of a cell, NaN where there are none.
[[nodiscard]] double cell_mean(const RecallOfPipelines& findings, std::size_t pipeline,
                               std::size_t cell, RecallScore score);

/// The options of suites that average over tasks and lengths.
struct RecallOptions : KvOptions {
  std::string tasks, lengths = "1024,2048,4096", question = "after";
  std::int64_t samples = 10;
  bool generate = true;
};
void describe_recall(Describe& d, RecallOptions& o);

/// Such a suite: every task at every length; tables of all, of tasks and of lengths; a picture of scores against bytes.
SuiteReport run_recall_suite(const SuiteSetup& setup, const RecallOptions& options,
                             const std::string& suite, const nlohmann::json& options_json);

}  // namespace mneme::bench
