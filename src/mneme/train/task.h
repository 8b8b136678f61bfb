// Task: where training examples come from, and how well a model does on data held back.
#pragma once

#include "mneme/core/generator.h"
#include "mneme/models/language_model.h"
#include "mneme/train/example.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

namespace mneme {

/// A source of examples. Nothing in `train/` knows what they are about.
class Task {
 public:
  static constexpr std::string_view kKind = "task";
  static constexpr std::string_view kKindHelp =
      "what is learned: training examples, and validation";

  /// What a task is made from beside its options.
  struct Setup {
    std::filesystem::path data;  ///< folder of data sets
    /// The model whose tokenizer and prompt the examples are made for; it outlives the task. A task
    /// asks for it once its data are known to be good: loading a model takes long.
    std::function<const LanguageModel*()> model;
    std::function<void()> between =
        [] {};  ///< to be called between pieces of long work (making the
                ///< task, validation); throws to stop there
  };
  using Make = std::unique_ptr<Task>(const Setup&);

  virtual ~Task() = default;

  /// Examples in one pass.
  [[nodiscard]] virtual std::int64_t size() const = 0;

  /// The example at `index` in [0, size()) of pass `pass` (from 0). The same for the same index, pass
  /// and generator, whatever was asked before; a pass may draw its examples anew.
  [[nodiscard]] virtual Example example(std::int64_t index, std::int64_t pass,
                                        Generator& generator) const = 0;

  /// Figures on data held back ("f1"), over at most `limit` examples of it (0: all); by default none.
  [[nodiscard]] virtual std::map<std::string, double> validate(const LanguageModel& model,
                                                               std::int64_t limit) const;

  /// A digest of the data that examples and validation are made from: where it is the same, so are
  /// they. By default empty: they follow from the options.
  [[nodiscard]] virtual std::string digest() const;

  /// What a user of the result must know to use it as it was trained ("prompt"); goes into the
  /// adapter's metadata. By default nothing.
  [[nodiscard]] virtual std::map<std::string, std::string> notes() const;
};

}  // namespace mneme
