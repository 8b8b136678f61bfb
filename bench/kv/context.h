// Contexts: a text that has been read into a State and compressed by a pipeline, with what that cost.
#pragma once

#include "mneme/core/state.h"
#include "mneme/models/language_model.h"

#include <ATen/core/Tensor.h>

#include "bench/kv/pipelines.h"
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace mneme::bench {

/// How contexts are read.
struct ContextOptions {
  std::int64_t chunk = 512;  ///< tokens of one pass
  bool alone =
      false;  ///< every pipeline reads for itself, even where one reading would do for several
  std::function<void()> between = [] {};  ///< called between passes; throws to stop there
};

/// A context as one pipeline holds it.
struct CompressedContext {
  State state;
  std::int64_t tokens = 0;
  double seconds = 0;           ///< reading and compressing
  double observe_seconds = 0;   ///< of them, spent on looking at attention and on cutting
  std::int64_t bytes = 0;       ///< resident now
  std::int64_t most_bytes = 0;  ///< resident after the pass that left most
  double kept = 0;              ///< entries a head holds, mean over layers and heads
  bool shared = false;          ///< made from a reading that other pipelines use too
};

/// Takes down what the context's State holds now.
void take_usage(CompressedContext& context);

/// Whether a plan changes what later tokens of a context look at, or keeps them in a way of its own, so that nothing can
/// be shared with a reading that kept everything.
[[nodiscard]] bool acts_during_prefill(const KvPlan& plan);

/// Whether a plan reads only some entries at decoding steps, so that what comes behind a context has to come token by
/// token to show what that costs.
[[nodiscard]] bool acts_at_steps(const Pipeline& pipeline);
/// The same options for what is fed behind a context.
[[nodiscard]] ContextOptions behind_context(ContextOptions options, const Pipeline& pipeline);

/// Feeds ids to a state of one row in chunks. `seen` is called after each pass with its logits: of all tokens, of the last
/// one (in every pass) or undefined, as `at` says.
void feed(const LanguageModel& model, State& state, std::span<const std::int32_t> ids, LogitsAt at,
          const ContextOptions& options,
          const std::function<void(const at::Tensor& logits)>& seen = {});

/// One context for several pipelines. Those that act only once it has been read share one reading.
class ContextReader {
 public:
  /// For these pipelines. `model` must outlive this. Nothing is read yet.
  ContextReader(const LanguageModel& model, const std::vector<Pipeline>& pipelines,
                std::vector<std::int32_t> ids, ContextOptions options);

  /// The context as the pipeline holds it. Throws Error(full) where it does not fit the model.
  [[nodiscard]] CompressedContext read(const Pipeline& pipeline);

 private:
  /// The single place where a context is read and compressed: by a fork of `full`, or from the start where that is null.
  [[nodiscard]] CompressedContext run_context(const Pipeline& pipeline,
                                              const CompressedContext* full) const;

  const LanguageModel& model_;
  std::vector<std::shared_ptr<const KvPlan>> forking_;  // what the shared reading is looked at for
  std::vector<std::int32_t> ids_;
  ContextOptions options_;
  std::optional<CompressedContext> full_;
  std::optional<Error> failed_;  // of the shared reading: it is not tried again
};

/// Greedy decoding of `steps` tokens behind a fork of `state`, one by one; the seconds that they took.
[[nodiscard]] double decode_seconds(const LanguageModel& model, const State& state,
                                    std::int32_t first, std::int64_t steps);

/// The reason of an error that belongs into a row of a table: a context that does not fit, or a request that a pipeline
/// cannot serve. Any other error is thrown on.
[[nodiscard]] std::string refusal_of(const Error& error);

}  // namespace mneme::bench
