// Provenance lists as they stand in the file: ",3,17," so that a document is found by `instr`.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::memory {

/// The stored form, sorted and without repetitions; nothing for an empty list, and nothing for a
/// list of `own` alone.
std::optional<std::string> write_provenance(std::span<const std::int64_t> documents,
                                            std::int64_t own = 0);
/// The documents of a stored form; what is no number is left out (verify reports it).
std::vector<std::int64_t> read_provenance(std::string_view stored);
/// What `instr(provenance, ?)` finds a document by.
std::string provenance_needle(std::int64_t document);

}  // namespace mneme::memory
