// Trainer: the loop around a model, what is trained beside it, and a task.
//
// A training is a function of its config, the model and the task: stopped at any moment and resumed
// from its checkpoint it takes the same steps, bit for bit on the same machine, as if it had never
// stopped.
#pragma once

#include "mneme/core/params.h"
#include "mneme/models/language_model.h"
#include "mneme/train/batch_order.h"
#include "mneme/train/config.h"
#include "mneme/train/gradients.h"
#include "mneme/train/optimizer.h"
#include "mneme/train/schedule.h"
#include "mneme/train/task.h"
#include "mneme/train/training_log.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace mneme {

/// How a training begins.
enum class Begin {
  fresh,      ///< only where it would destroy nothing
  overwrite,  ///< over what an earlier training left, finished or not
  resume,     ///< from the checkpoint of one that was stopped
};

/// Where a training leaves what, by its output.
struct TrainingFiles {
  std::filesystem::path output;      ///< the adapter, when all is done
  std::filesystem::path checkpoint;  ///< "<output>.checkpoint", gone when all is done
  std::filesystem::path log, plot;   ///< the output's name with ".jsonl" and ".svg"

  explicit TrainingFiles(const std::filesystem::path& output);

  /// Looks whether a training can begin so, before anything is loaded. Throws Error(usage) for an
  /// output that no adapter can have, Error(io) where its folder is missing or cannot be written,
  /// Error(invalid) for what is in the way of a fresh training, and for a file in the log's place
  /// that is no log (a list of questions, say) or in the adapter's that is no adapter (of `model`, the
  /// model's own file or folder, say), which nothing overwrites; Error(not_found) where there is
  /// nothing to resume.
  void check(Begin begin, const std::filesystem::path& model = {}) const;
};

/// Looks whether a training can begin so, as far as that can be told before model and data are
/// loaded. Throws as TrainingFiles::check, as Trainer's constructor, as locate_model, and, where a
/// setting is not that of the checkpoint to resume, as Trainer::load_checkpoint.
void check_training(const TrainConfig& config, Begin begin);

/// How a training ended.
struct TrainingReport {
  std::int64_t steps = 0, examples = 0, tokens = 0;
  double seconds = 0;          ///< of the steps, those before a resumption included
  std::optional<double> loss;  ///< smoothed over the last steps of this run; none: it took no step
  ValidationReport validation;
  std::optional<ValidationReport> before;  ///< of the first step, where there was one
};

/// Attaches fresh adapters to the model as the config says and gives their weights. Throws
/// Error(not_found) where no matrix matches.
Params attach_adapters(LanguageModel& model, const TrainConfig& config);

class Trainer {
 public:
  /// Makes ready to train every tensor of `adapters`, which are attached to `model`, on `task`; all
  /// outlive the trainer. Throws Error(usage) for a config that cannot be, Error(unsupported) for a
  /// device that is not.
  Trainer(LanguageModel& model, const Params& adapters, const Task& task, TrainConfig config);

  /// Trains to the end: steps, validations, log, plot, checkpoints; writes the adapter and takes the
  /// checkpoint away. `between` is called often; if it throws, a checkpoint is left and the exception
  /// goes on. Throws as TrainingFiles::check, Error(mismatch) if the checkpoint to resume is that of
  /// another training, naming the first difference, Error(invalid) if the loss is no number.
  TrainingReport run(Begin begin = Begin::fresh, const std::function<void()>& between = [] {});

  /// Whether all steps are done.
  [[nodiscard]] bool done() const;
  /// One step. If `between` throws, the step is not taken.
  StepReport step(const std::function<void()>& between = [] {});
  /// Figures on held-back data, as the task gives them.
  [[nodiscard]] ValidationReport validate() const;

  /// Everything that the steps to come depend on, as a file that appears whole or not at all.
  void save_checkpoint(const std::filesystem::path& path) const;
  /// Takes up such a file. Throws Error(mismatch) if it is that of another training.
  void load_checkpoint(const std::filesystem::path& path);
  /// Writes the trained adapter.
  void save(const std::filesystem::path& path) const;

  [[nodiscard]] std::int64_t steps() const { return step_; }

 private:
  [[nodiscard]] double share_done() const;
  [[nodiscard]] bool validation_is_due() const;
  double clip_gradients();

  LanguageModel& model_;
  Params adapters_;
  const Task& task_;
  TrainConfig config_;
  std::vector<std::pair<std::string, std::string>> recipe_;
  std::vector<WeightedObjective> objectives_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Schedule> schedule_;
  BatchOrder order_;
  std::int64_t step_ = 0, examples_ = 0, tokens_ = 0;
  std::int64_t validated_ = -1;  // steps before the last validation; -1: there was none
  BatchOrder::Place place_;      // of the batch after the last step
  double seconds_ = 0;
};

}  // namespace mneme
