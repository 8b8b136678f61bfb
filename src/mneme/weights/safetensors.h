// safetensors: named tensors behind a JSON header, in one file.
#pragma once

#include "mneme/weights/weight_tensor.h"

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace mneme {

class MappedFile;

/// A mapped safetensors file whose header has been checked: every tensor lies inside the file and
/// has the size that its type and shape ask for; together they cover the data without overlap.
class SafetensorsFile {
 public:
  struct Entry {
    std::string name, dtype;  ///< dtype as the format names it: "F32", "BF16", "I64", ...
    std::vector<std::int64_t> shape;
    std::int64_t begin = 0, bytes = 0;  ///< `begin` counts from the start of the file
  };

  /// Throws as MappedFile, and `corrupt` with the tensor and the numbers that do not fit.
  explicit SafetensorsFile(const std::filesystem::path& path);

  [[nodiscard]] const std::filesystem::path& path() const noexcept;
  /// In the order of their data.
  [[nodiscard]] const std::vector<Entry>& entries() const noexcept { return entries_; }
  [[nodiscard]] const Entry* find(std::string_view name) const;
  /// The header's `__metadata__`.
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const noexcept {
    return metadata_;
  }
  [[nodiscard]] const std::shared_ptr<const MappedFile>& file() const noexcept { return file_; }

  /// Whether the entry holds floating-point numbers, of a type that is supported or not.
  [[nodiscard]] static bool is_weight(const Entry& entry);
  /// A view of the mapping; throws `unsupported` for anything but F32, F16 and BF16.
  [[nodiscard]] WeightTensor weight(const Entry& entry) const;

 private:
  std::shared_ptr<const MappedFile> file_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string_view, std::size_t> index_;  // keys are views of entries_[..].name
  std::map<std::string, std::string> metadata_;
};

/// Writes the tensors (of any device and stride) so that the file appears whole or not at all, and
/// is on the disk when this returns. Types: F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL.
/// Throws `invalid` for an undefined tensor or a name that is not UTF-8, is longer than 1024 bytes
/// or is "__metadata__"; `unsupported` for another type; `io`.
void write_safetensors(const std::filesystem::path& path,
                       const std::map<std::string, at::Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

/// Every tensor of the file, in memory of its own; `metadata`, if given, receives the header's
/// `__metadata__`. Types as write_safetensors; throws as SafetensorsFile, `unsupported` for others.
std::map<std::string, at::Tensor> read_safetensors(
    const std::filesystem::path& path, std::map<std::string, std::string>* metadata = nullptr);

}  // namespace mneme
