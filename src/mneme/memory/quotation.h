// Quotations: whether an answer's words stand in a text, and where.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace mneme::memory {

/// Bytes [begin, end) of the first place where `answer` stands in `text` as it is and not inside a word ("7" in "depth=7",
/// not in "1971"), else where its normalised words stand one after another; nothing if there is none.
std::optional<std::pair<std::int64_t, std::int64_t>> find_quotation(std::string_view text,
                                                                    std::string_view answer);

}  // namespace mneme::memory
