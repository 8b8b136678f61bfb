#include "bench/writable.h"

#include "mneme/core/error.h"

#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <unistd.h>

namespace mneme::bench {

void check_writable(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  if (path.empty()) return;
  const auto refuse = [&](const std::string& why) {
    throw Error(Errc::io, fmt::format("{}: cannot be written: {}", path.string(), why));
  };
  std::error_code error;
  if (fs::is_directory(path, error)) refuse("it is a folder");
  const bool there = fs::exists(path, error);
  const auto folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  if (!there && !fs::is_directory(folder, error))
    refuse(fmt::format("there is no folder {}", folder.string()));
  if (::access((there ? path : folder).c_str(), W_OK) != 0) refuse(std::strerror(errno));
}

}  // namespace mneme::bench
