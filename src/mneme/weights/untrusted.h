// Reading what may be damaged or hostile: sizes that cannot overflow, JSON that cannot blow up,
// names fit for a message.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {
class MappedFile;
}

namespace mneme::weights {

/// The longest tensor name that is believed.
inline constexpr std::int64_t kMaxNameBytes = 1024;

/// Text from a file, cut and escaped so that it stays within one readable line of an error message.
std::string printable(std::string_view text);

/// The product of sizes, or nothing if one is negative or the product exceeds int64.
std::optional<std::int64_t> checked_product(const std::vector<std::int64_t>& sizes) noexcept;

/// What a JSON text may hold: a hostile one costs memory per value, not only per byte.
struct JsonBounds {
  int depth = 64;
  std::int64_t values = 1 << 21;
};

/// Parses; throws `corrupt`, naming `path` and the place, for what is not JSON within the bounds.
nlohmann::json parse_json(std::string_view text, const std::filesystem::path& path,
                          const JsonBounds& bounds = {});

/// Parses a whole file of at most `max_bytes`; throws as parse_json.
nlohmann::json read_json(const MappedFile& file, std::int64_t max_bytes = std::int64_t{64} << 20);

/// Whether a path found in a file stays below the folder that the file is in.
bool stays_inside(const std::filesystem::path& relative);

}  // namespace mneme::weights
