// Common English words by their part of speech, for tasks that draw words at random.
#pragma once

#include <span>
#include <string_view>

namespace mneme::tasks {

/// In lower case; no word is in two of the lists.
std::span<const std::string_view> adjectives() noexcept;
std::span<const std::string_view> nouns() noexcept;
std::span<const std::string_view> verbs() noexcept;

}  // namespace mneme::tasks
