// TrainingLog: what happened in a training, a JSON object a line, and its curves.
//
//   {"step": 1, "loss": 2.5, "terms": {"cross_entropy": 2.5}, "lr": 0.0001, "gradient_norm": 3.1,
//    "tokens": 2048, "tokens_per_s": 190.5}
//   {"step": 50, "validation": {"f1": 71.2}, "seconds": 40.1}
#pragma once

#include "mneme/train/gradients.h"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace mneme {

/// One step of a training.
struct StepReport {
  std::int64_t step = 0;  ///< from 1
  LossValue loss;         ///< mean over the step's batches, by the weight of their tokens
  double rate = 0;        ///< learning rate
  double norm = 0;        ///< of all gradients, before clipping
  std::int64_t tokens = 0, examples = 0;
  double seconds = 0;
};

/// Figures of a validation.
struct ValidationReport {
  std::int64_t step = 0;  ///< steps before it
  std::map<std::string, double> figures;
  double seconds = 0;
};

class TrainingLog {
 public:
  /// Starts a log; what was in the file is gone. Throws Error(io).
  explicit TrainingLog(std::filesystem::path path);
  /// Goes on with a log behind this step: what is in it of later steps, or cannot be read, is left
  /// out; so are validations behind `validated`. A missing file is an empty log. Warns of steps up to
  /// this one that the log lacks. Throws Error(io).
  TrainingLog(std::filesystem::path path, std::int64_t step, std::int64_t validated);

  /// Whether a file is a log, perhaps one whose first line was cut off.
  [[nodiscard]] static bool is_one(const std::filesystem::path& path);

  void add(const StepReport& report);
  void add(const ValidationReport& report);
  /// Waits until all that was added is on the disk: before a checkpoint is, so that even a power cut
  /// leaves no checkpoint ahead of its log. Throws Error(io).
  void sync() const;
  [[nodiscard]] const std::vector<ValidationReport>& validations() const { return validations_; }
  /// The curves so far as an SVG file that appears whole or not at all. Throws Error(io).
  void plot(const std::filesystem::path& path, std::string_view title) const;

 private:
  void write(const std::string& line);
  std::filesystem::path path_;
  std::ofstream out_;
  std::vector<StepReport> steps_;
  std::vector<ValidationReport> validations_;
};

}  // namespace mneme
