// Where sentences end, well enough to cut a long paragraph.
#pragma once

#include <cstddef>
#include <string_view>

namespace mneme::text {

/// The byte at which the sentence behind the one at `at` begins, or text.size(). A sentence ends in
/// . ! ? (or the mark of another script), with quotes and brackets that close behind it, before
/// white space; not before a lower-case letter, and not at a common English abbreviation or an
/// initial. Scripts that write no spaces need none.
std::size_t next_sentence(std::string_view text, std::size_t at);

/// Whether a line ends as a sentence does, or with a colon: the mark may have quotes and brackets
/// behind it.
bool ends_sentence(std::string_view line);

}  // namespace mneme::text
