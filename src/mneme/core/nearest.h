// The known name that a misspelt one probably means.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// The candidate with the smallest edit distance to `name`, or "" when none is closer than half its length.
std::string nearest(std::string_view name, const std::vector<std::string>& candidates);

/// ", did you mean 'x'?" for error messages, or "" when nothing is near.
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates);

/// True if `name` matches `pattern`, where '*' stands for any run of characters and '|' separates alternatives.
bool glob_match(std::string_view pattern, std::string_view name);

}  // namespace mneme
