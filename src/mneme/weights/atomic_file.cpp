#include "mneme/weights/atomic_file.h"

#include "mneme/core/error.h"

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <unistd.h>
#include <utility>

namespace mneme {
namespace {

Error writing_error(const std::filesystem::path& path, const char* action) {
  return Error(Errc::io, path.string() + ": cannot " + action + ": " + std::strerror(errno));
}

/// False, with errno, if that failed.
bool sync_and_close(int descriptor) {
  const bool synced =
      ::fsync(descriptor) == 0 || errno == EINVAL;  // some file systems cannot sync a folder
  const int code = errno;
  ::close(descriptor);
  errno = code;
  return synced;
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  static std::atomic<unsigned> next{0};
  // Process and counter make the name free, but for what a killed process of that number left.
  for (int attempt = 0; attempt < 100; ++attempt) {
    temporary_ = path_;
    temporary_ += ".partial-" + std::to_string(::getpid()) + "-" + std::to_string(next++);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ >= 0) return;
    if (errno != EEXIST) break;
  }
  throw writing_error(path_, "create");
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      throw writing_error(path_, "write");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void AtomicFile::commit(bool durable) {
  if (durable && ::fsync(descriptor_) != 0) throw writing_error(path_, "write");
  if (::close(std::exchange(descriptor_, -1)) != 0) throw writing_error(path_, "write");
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) throw writing_error(path_, "replace");
  temporary_.clear();
  if (!durable) return;
  const auto folder = path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
  const int directory = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) throw writing_error(folder, "open");
  if (!sync_and_close(directory)) throw writing_error(folder, "write");
}

bool sync_to_disk(const std::filesystem::path& path, int flags) {
  const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC);
  return descriptor >= 0 && sync_and_close(descriptor);
}

}  // namespace mneme
