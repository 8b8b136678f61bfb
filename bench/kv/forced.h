// Texts that pipelines are shown token by token (teacher forcing), and what they predict at each: behind a compressed
// context, or all along a stream that is compressed as it comes.
#pragma once

#include "mneme/models/language_model.h"

#include "bench/kv/context.h"
#include "bench/kv/pipelines.h"
#include "bench/kv/rows.h"
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace mneme::bench {

/// How one pipeline went on behind one context: means over the tokens of the continuation.
struct ContinuationOutcome {
  bool measured = false;
  double kl = 0, agreement = 0, nll = 0, full_nll = 0;
  std::vector<double> token_kl;  ///< of every token
};

/// Outcomes of all pipelines on the same texts.
struct ContinuationFindings {
  std::vector<std::vector<ContinuationOutcome>> outcomes;  ///< [pipelines][texts]
  std::vector<Footprint> footprints;
  std::vector<std::string> refusals;  ///< the first of each pipeline; empty: none
};

/// The first `context` tokens of every text are read and compressed, the rest is shown. Every prediction that is compared
/// comes from behind the compressed context, the first one too; so the last token is only predicted. `steps` tokens are
/// decoded for the time that it takes. Throws Error(usage) for a text of less than `context` + 2 tokens.
ContinuationFindings measure_continuations(const LanguageModel& model,
                                           const std::vector<Pipeline>& pipelines,
                                           std::span<const std::vector<std::int32_t>> texts,
                                           std::int64_t context, std::int64_t steps,
                                           const ContextOptions& options);

/// A row a pipeline: KL, agreement and difference in NLL to the full cache, over texts.
std::vector<KvRow> continuation_rows(const std::vector<Pipeline>& pipelines,
                                     const ContinuationFindings& findings, const std::string& part);

/// How one pipeline predicted a stream.
struct StreamOutcome {
  std::vector<double> nll;    ///< of every token but the first, nats, as far as it came
  CompressedContext context;  ///< as the stream left it; its State may be lost where it was refused
  std::string refusal;        ///< why it did not come further; empty: it came to the end
};

/// Shows the whole text to a pipeline, a chunk a pass.
StreamOutcome measure_stream(const LanguageModel& model, const Pipeline& pipeline,
                             std::span<const std::int32_t> text, const ContextOptions& options);

/// Means of each `window` numbers, the last of what is left.
[[nodiscard]] std::vector<double> window_means(std::span<const double> x, std::int64_t window);

}  // namespace mneme::bench
