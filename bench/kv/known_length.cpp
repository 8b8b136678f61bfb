#include "bench/kv/known_length.h"

#include "mneme/core/error.h"

#include <algorithm>
#include <functional>

namespace mneme::bench {
namespace {

/// The share of all samples that each pipeline ranks right; 0 where it was not measured.
std::vector<double> ranking_of(const RecallOfPipelines& found) {
  std::vector<double> out;
  for (const auto& outcomes : found.outcomes) {
    double right = 0;
    for (const auto& outcome : outcomes) right += outcome.measured && outcome.ranked > 0 ? 1 : 0;
    out.push_back(right / static_cast<double>(outcomes.size()));
  }
  return out;
}

}  // namespace

KnownNeedles rank_at_known_length(const LanguageModel& model,
                                  const std::vector<Pipeline>& pipelines, const std::string& task,
                                  std::vector<std::int64_t> lengths,
                                  const std::filesystem::path& data,
                                  const RecallSettings& settings) {
  if (lengths.empty()) throw Error(Errc::usage, "--lengths: is empty: at least one is wanted");
  std::sort(lengths.begin(), lengths.end(), std::greater<>());
  const auto at_length = [&](std::int64_t tokens, const std::vector<Pipeline>& some) {
    std::vector<RecallCell> cells;
    for (const double depth : {0.0, 0.25, 0.5, 0.75, 1.0}) cells.push_back({task, tokens, depth});
    return ranking_of(measure_recall(model, some, cells, data, settings));
  };
  KnownNeedles out;
  for (const auto tokens : lengths) {
    out.tokens = tokens;
    out.known = at_length(tokens, {pipelines.front()}).front() >= kKnown;
    if (out.known) break;
  }
  out.ranking = at_length(out.tokens, pipelines);
  return out;
}

}  // namespace mneme::bench
