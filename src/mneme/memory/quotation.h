// Quotations: whether an answer's words stand in a text, and where.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace mneme::memory {

/// Bytes [begin, end) of the first place where the normalised words of `answer` stand one after another in `text`;
/// nothing if they do not, or the answer has no words.
std::optional<std::pair<std::int64_t, std::int64_t>> find_quotation(std::string_view text,
                                                                    std::string_view answer);

}  // namespace mneme::memory
