#include "bench/scratch_folder.h"

#include "mneme/core/error.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fmt/format.h>

namespace mneme::bench {

ScratchFolder::ScratchFolder() {
  auto name = (std::filesystem::temp_directory_path() / "mneme-bench-XXXXXX").string();
  if (!mkdtemp(name.data()))
    throw Error(Errc::io, fmt::format("{}: {}", name, std::strerror(errno)));
  path_ = name;
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace mneme::bench
