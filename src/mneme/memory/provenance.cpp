#include "mneme/memory/provenance.h"

#include <algorithm>
#include <charconv>

namespace mneme::memory {

std::optional<std::string> write_provenance(std::span<const std::int64_t> documents,
                                            std::int64_t own) {
  std::vector<std::int64_t> sorted(documents.begin(), documents.end());
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  if (sorted.empty() || (sorted.size() == 1 && sorted[0] == own)) return std::nullopt;
  std::string stored = ",";
  for (const auto document : sorted) stored += std::to_string(document) + ",";
  return stored;
}

std::vector<std::int64_t> read_provenance(std::string_view stored) {
  std::vector<std::int64_t> documents;
  for (std::size_t at = 0; at < stored.size();) {
    const auto end = std::min(stored.find(',', at), stored.size());
    std::int64_t document = 0;
    const auto [stop, error] = std::from_chars(stored.data() + at, stored.data() + end, document);
    if (error == std::errc() && stop == stored.data() + end) documents.push_back(document);
    at = end + 1;
  }
  return documents;
}

std::string provenance_needle(std::int64_t document) {
  return "," + std::to_string(document) + ",";
}

}  // namespace mneme::memory
