// HeadProfile: numbers about each head of one model, measured once by `mneme calibrate` and read by stages that need them.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <string_view>

namespace mneme {

class HeadProfile {
 public:
  std::string model_digest;  ///< of the model that it was measured on
  std::map<std::string, at::Tensor>
      numbers;  ///< by the calibration's name; the first two dimensions are [layers, heads]
  std::map<std::string, std::string>
      measured;  ///< how each was measured: spec and text, for people

  /// The numbers of a calibration; throws Error(not_found) that says how to measure them.
  [[nodiscard]] const at::Tensor& find(std::string_view name) const;

  /// Throws Error(corrupt) on a file that `save` did not write.
  [[nodiscard]] static HeadProfile load(const std::filesystem::path& path);
  /// The file appears whole or not at all.
  void save(const std::filesystem::path& path) const;
};

}  // namespace mneme
