// Stepwise continuations: the tokens behind a context are shown one by one, as they come while text is generated, so that
// stages act which read less at such steps.
#pragma once

#include "mneme/models/language_model.h"

#include "bench/kv/context.h"
#include "bench/kv/pipelines.h"
#include <cstdint>
#include <span>
#include <vector>

namespace mneme::bench {

/// The first `context` tokens of every text are read in chunks and compressed, the rest but the last is shown token by
/// token. Mean NLL of the predictions, nats [pipelines][texts]. Throws Error(usage) for a text of less than `context` + 2
/// tokens, and as ContextReader.
std::vector<std::vector<double>> measure_steps(const LanguageModel& model,
                                               const std::vector<Pipeline>& pipelines,
                                               std::span<const std::vector<std::int32_t>> texts,
                                               std::int64_t context, const ContextOptions& options);

}  // namespace mneme::bench
