// Files that a run will write at its end, looked at before it begins.
#pragma once

#include <filesystem>

namespace mneme::bench {

/// Throws Error(io) with the reason where the file cannot be written; an empty path is no file. Leaves nothing behind.
void check_writable(const std::filesystem::path& path);

}  // namespace mneme::bench
