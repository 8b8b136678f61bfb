// AtomicFile: a file that appears whole or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace mneme {

/// Writes beside the target and renames over it on commit(), so a reader or a crash sees the old
/// file or the new one.
class AtomicFile {
 public:
  /// Throws `io` if the folder cannot be written.
  explicit AtomicFile(std::filesystem::path path);
  /// Without a commit() nothing remains.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Appends; throws `io` (a full disk, a lost device).
  void write(std::span<const std::byte> bytes);
  /// Makes the file appear. `durable` waits until bytes and name are on the disk. Throws `io`.
  void commit(bool durable = true);

 private:
  std::filesystem::path path_, temporary_;
  int descriptor_ = -1;
};

/// Waits until what was written to a file, or the names in a folder, are on the disk; `flags` to open it with. False, with
/// errno, if that failed; a file system that cannot sync it has done what it can.
bool sync_to_disk(const std::filesystem::path& path, int flags);

}  // namespace mneme
