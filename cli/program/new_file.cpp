#include "cli/program/new_file.h"

#include <system_error>
#include <utility>

namespace mneme::cli {

namespace fs = std::filesystem;

NewFile::NewFile(fs::path path) : path_(std::move(path)) {
  std::error_code error;
  was_there_ = fs::exists(fs::symlink_status(path_, error));
}

NewFile::~NewFile() {
  std::error_code error;
  if (was_there_ || !fs::is_regular_file(fs::symlink_status(path_, error))) return;
  const auto bytes = fs::file_size(path_, error);
  if (!error && bytes == 0) fs::remove(path_, error);
}

}  // namespace mneme::cli
