// String match: how much of what should be said is in what was said, as RULER scores it.
// Source: Hsieh et al. 2024, arXiv:2404.06654.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace mneme::tasks {

/// The share of the references that stand in the text, whatever the case of letters; 0 without any.
double string_match_all(std::string_view said, std::span<const std::string> references);

/// 1 if one of the references stands in the text, whatever the case of letters, else 0.
double string_match_part(std::string_view said, std::span<const std::string> references);

}  // namespace mneme::tasks
