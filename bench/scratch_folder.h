// A folder for what a suite writes.
#pragma once

#include <filesystem>

namespace mneme::bench {

/// A new folder under the system's temporary one; gone, with all that is in it, when this ends.
class ScratchFolder {
 public:
  /// Throws Error(io).
  ScratchFolder();
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace mneme::bench
