#include "mneme/weights/mapped_file.h"

#include "mneme/core/error.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace mneme {
namespace {

Error mapping_error(const std::filesystem::path& path, const char* action) {
  const int code = errno;
  const bool missing = code == ENOENT || code == ENOTDIR;
  return Error(missing ? Errc::not_found : Errc::io,
               path.string() + ": cannot " + action + ": " + std::strerror(code));
}

FileIdentity identity_of(const struct stat& status) {
  return {
      static_cast<std::uint64_t>(status.st_dev), static_cast<std::uint64_t>(status.st_ino),
      static_cast<std::int64_t>(status.st_size),
      static_cast<std::int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec};
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  // Non-blocking, or opening a named pipe would wait for a writer before it can be refused.
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) throw mapping_error(path, "open");
  try {
    struct stat status{};
    if (::fstat(descriptor_, &status) != 0) throw mapping_error(path, "examine");
    if (!S_ISREG(status.st_mode)) {
      throw Error(Errc::invalid,
                  path.string() + ": is " +
                      (S_ISDIR(status.st_mode) ? "a directory" : "a device or pipe") +
                      ", not a regular file");
    }
    identity_ = identity_of(status);
    if (status.st_size == 0) return;
    const auto size = static_cast<std::size_t>(status.st_size);
    void* start =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, descriptor_, 0);
    if (start == MAP_FAILED) throw mapping_error(path, "map");
    bytes_ = {static_cast<const std::byte*>(start), size};
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  ::close(descriptor_);
}

void MappedFile::read(std::int64_t offset, std::span<std::byte> into) const {
  while (!into.empty()) {
    const auto count = ::pread(descriptor_, into.data(), into.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw mapping_error(path_, "read");
    if (count == 0) throw Error(Errc::busy, path_.string() + ": became shorter while it was read");
    into = into.subspan(static_cast<std::size_t>(count));
    offset += count;
  }
}

FileIdentity MappedFile::identity_now() const {
  struct stat status{};
  if (::fstat(descriptor_, &status) != 0) throw mapping_error(path_, "examine");
  return identity_of(status);
}

}  // namespace mneme
