// Calibration: measures numbers of each head of a model, once, by running it over text. What is measured is kept in the
// model's head profile, and KV stages read it there.
#pragma once

#include "mneme/models/language_model.h"

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme {

/// What a model is run over: plain text, or filler for what a calibration hides in it.
struct CalibrationText {
  std::string name;  ///< for people: "handbook.txt"
  std::string text;
};

/// What was measured.
struct Calibrated {
  /// By the name under which stages find them; f32, the first two dimensions are [layers, heads].
  std::map<std::string, at::Tensor> numbers;
  /// What people look at, in their order: "explained share, median" = 0.71.
  std::vector<std::pair<std::string, double>> figures;
  std::map<std::string, std::vector<double>>
      by_layer;     ///< what is worth a figure a layer, by its name
  std::string how;  ///< what was run: "3072 queries a head at positions below 4096"
};

class Calibration {
 public:
  static constexpr std::string_view kKind = "calibration";
  static constexpr std::string_view kKindHelp =
      "numbers of each head, measured once on a model by `mneme calibrate`";
  using Make = std::unique_ptr<Calibration>();

  virtual ~Calibration() = default;
  /// Runs the model and shows progress; `between` is called between runs and may throw to end it. The same model and text
  /// give the same numbers. Throws Error(invalid) for a text that is too short, Error(unsupported) for a model without
  /// softmax attention.
  [[nodiscard]] virtual Calibrated run(const LanguageModel& model, const CalibrationText& text,
                                       const std::function<void()>& between) const = 0;
};

}  // namespace mneme
