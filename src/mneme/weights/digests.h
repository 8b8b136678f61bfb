// Digests: SHA-256 of bytes and of files, the latter remembered between runs.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace mneme {

class MappedFile;

/// SHA-256 over bytes that come in pieces.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  Sha256& update(std::span<const std::byte> bytes);
  Sha256& update(std::string_view text);
  /// The digest of everything so far as 64 lower-case hex digits; updating may go on afterwards.
  [[nodiscard]] std::string hex() const;

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

/// SHA-256 as 64 lower-case hex digits.
std::string sha256_hex(std::span<const std::byte> bytes);
std::string sha256_hex(std::string_view text);

/// SHA-256 of a file's content. Large files are remembered by (device, inode, size, mtime) in
/// ${XDG_CACHE_HOME:-~/.cache}/mneme/digests; a cache that is broken or cannot be written only
/// costs time. A file that was written within the last two seconds is not remembered: a second
/// write could leave the same time stamp. Throws `busy` if the file changes while it is read, else
/// as MappedFile.
std::string file_digest(const std::filesystem::path& path);
/// The same for a file that is mapped already: what was written through the mapping does not count.
std::string file_digest(const MappedFile& file);

}  // namespace mneme
