// Command lines as a shell takes them, to be shown and copied.
#pragma once

#include <string>
#include <vector>

namespace mneme::cli {

/// A word, quoted where it must be.
[[nodiscard]] std::string shell_word(const std::string& word);
/// Words, a space between them.
[[nodiscard]] std::string shell_line(const std::vector<std::string>& words);

}  // namespace mneme::cli
