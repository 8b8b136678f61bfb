// RecallTask: generated texts with a question behind them whose answer stands in the text. How much of it a memory
// still holds is measured by ranking the right answer among wrong ones of the same form, and by generation.
#pragma once

#include "mneme/core/error.h"
#include "mneme/core/generator.h"
#include "mneme/text/tokenizer.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme {

/// One text and what is asked about it.
struct RecallSample {
  std::string context;   ///< what is read
  std::string question;  ///< comes right behind the context; the answer goes right behind it
  std::vector<std::string> answers;  ///< all that belong to the right answer, in the text's order
  std::vector<std::string>
      candidates;  ///< texts to rank as continuations of the question; the first is the right one
  /// Where the evidence stands: byte ranges [begin, end) of the context, ascending.
  std::vector<std::pair<std::int64_t, std::int64_t>> evidence;
};

/// What a sample is drawn for.
struct RecallRequest {
  std::int64_t tokens =
      1024;           ///< of context and question together: as near below as the task can come
  double depth = -1;  ///< where the evidence stands, 0 the start and 1 the end; below 0: anywhere
};

class RecallTask {
 public:
  static constexpr std::string_view kKind = "recall_task";
  static constexpr std::string_view kKindHelp =
      "generated texts with questions, to measure what a memory still holds";
  /// `data` is the folder of the data sets, for tasks whose filler is real text; where it is absent they generate it.
  using Make = std::unique_ptr<RecallTask>(const std::filesystem::path& data);

  virtual ~RecallTask() = default;
  /// Draws from the generator alone: equal generators give equal samples. Throws Error(usage) where so few tokens hold no
  /// sample of the task.
  [[nodiscard]] virtual RecallSample draw(const RecallRequest& request, const Tokenizer& tokenizer,
                                          Generator& generator) const = 0;
  /// Samples with one context: the evidence of each stands at one of `depths`, in their order, on a key that no other names.
  /// Context and the longest question have as many tokens as fit into `tokens`. Throws as `draw`, and Error(usage) where the
  /// task asks one question of a text, or has not so many keys.
  [[nodiscard]] virtual std::vector<RecallSample> draw_together(std::int64_t /*tokens*/,
                                                                std::span<const double> /*depths*/,
                                                                const Tokenizer& /*tokenizer*/,
                                                                Generator& /*generator*/) const {
    throw Error(Errc::usage, "this recall task asks one question of a text: read texts apart");
  }
  /// What an answer that was generated is worth, 0 to 1, by the scorer of the task's benchmark.
  [[nodiscard]] virtual double score(std::string_view said, const RecallSample& sample) const = 0;
  /// The most tokens that an answer takes.
  [[nodiscard]] virtual std::int64_t answer_tokens() const { return 32; }
};

}  // namespace mneme
