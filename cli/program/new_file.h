// A file that a verb is about to make.
#pragma once

#include <filesystem>

namespace mneme::cli {

/// Declared before a verb opens a file that may not be there yet. If the file was not there and is empty at the end, for
/// want of room or because the work failed, it is removed: a failure leaves nothing behind that looks like a result.
class NewFile {
 public:
  explicit NewFile(std::filesystem::path path);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

 private:
  std::filesystem::path path_;
  bool was_there_;
};

}  // namespace mneme::cli
