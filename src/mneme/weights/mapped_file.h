// MappedFile: a whole file in memory, read on demand by the operating system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace mneme {

/// What tells one state of a file from another without reading it.
struct FileIdentity {
  std::uint64_t device = 0, inode = 0;
  std::int64_t size_bytes = 0, mtime_ns = 0;
  bool operator==(const FileIdentity&) const = default;
};

/// A regular file mapped copy-on-write: a write through the mapping stays in this process and never
/// reaches the file. Whoever shortens the file while it is mapped takes the pages away from under
/// the reader (SIGBUS): replace files by rename, as write_safetensors does.
class MappedFile {
 public:
  /// Throws `not_found` if nothing is there, `io` if it cannot be read, `invalid` for anything but
  /// a regular file (a directory, a pipe).
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  /// The file's bytes; empty for an empty file.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }
  /// Fills `into` from the file itself, past what was written through the mapping; throws `io`, or
  /// `busy` if the file ends earlier than it did.
  void read(std::int64_t offset, std::span<std::byte> into) const;
  /// What the file was when it was mapped.
  [[nodiscard]] const FileIdentity& identity() const noexcept { return identity_; }
  /// What the mapped file is now (it may have been written in place since); throws `io`.
  [[nodiscard]] FileIdentity identity_now() const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::span<const std::byte> bytes_;
  FileIdentity identity_;
};

}  // namespace mneme
