// What RULER's tasks have in common: the noise that they hide things in, and lists of what is to be said.
// Source: Hsieh et al. 2024, arXiv:2404.06654.
#pragma once

#include "mneme/core/generator.h"

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::tasks {

/// A piece of noise.
inline constexpr std::string_view kNoise =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// How many answers there are to choose from, the right one included.
inline constexpr std::size_t kRulerCandidates = 10;

/// "a", "a, and b", "a, b, and c".
std::string listed(std::span<const std::string> items);

/// Items that a generator makes, each other than all before it and all in `taken`.
std::vector<std::string> new_items(std::size_t count, const std::vector<std::string>& taken,
                                   const std::function<std::string()>& make);

/// An adjective and a noun: "quiet-lantern".
std::string random_word(Generator& generator);
/// A number of so many digits, the first of them not 0.
std::string random_number(Generator& generator, std::size_t digits);
/// A version 4 UUID.
std::string random_uuid(Generator& generator);

}  // namespace mneme::tasks
