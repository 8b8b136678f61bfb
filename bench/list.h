// Lists in options: "128,512,2048".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::bench {

/// The parts between separators, white space at their ends taken off; empty ones are left out.
std::vector<std::string> listed(std::string_view text, char separator = ',');

/// The same as whole numbers of at least `least`; throws Error(usage) that names the option and what is wrong with it.
std::vector<std::int64_t> listed_numbers(std::string_view option, std::string_view text,
                                         std::int64_t least);

}  // namespace mneme::bench
