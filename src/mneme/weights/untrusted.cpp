#include "mneme/weights/untrusted.h"

#include "mneme/core/error.h"
#include "mneme/weights/mapped_file.h"

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>

namespace mneme::weights {

std::string printable(std::string_view text) {
  constexpr std::size_t kMaxShown = 96;
  std::string shown;
  for (const char c : text.substr(0, kMaxShown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      shown += c;
    } else {
      shown += "\\x";
      shown += "0123456789abcdef"[byte >> 4];
      shown += "0123456789abcdef"[byte & 15];
    }
  }
  if (text.size() > kMaxShown) shown += "...";
  return shown;
}

std::optional<std::int64_t> checked_product(const std::vector<std::int64_t>& sizes) noexcept {
  std::int64_t product = 1;
  bool empty = false;
  for (const auto size : sizes) {
    if (size < 0) return std::nullopt;
    if (size == 0) {
      empty = true;  // the other sizes must still multiply: ATen computes strides from them
    } else if (__builtin_mul_overflow(product, size, &product)) {
      return std::nullopt;
    }
  }
  return empty ? 0 : product;
}

nlohmann::json parse_json(std::string_view text, const std::filesystem::path& path,
                          const JsonBounds& bounds) {
  using Event = nlohmann::json::parse_event_t;
  std::int64_t values = 0;
  const auto within = [&](int depth, Event event, nlohmann::json&) {
    if (event != Event::object_end && event != Event::array_end &&
        (++values > bounds.values || depth > bounds.depth)) {
      throw Error(Errc::corrupt, path.string() + ": the JSON holds more than " +
                                     std::to_string(bounds.values) + " values or " +
                                     std::to_string(bounds.depth) +
                                     " levels: this is not what such a file holds");
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), within);
  } catch (const nlohmann::json::parse_error& error) {
    throw Error(Errc::corrupt, path.string() + ": is not valid JSON at byte " +
                                   std::to_string(error.byte) + ": it is truncated or damaged");
  } catch (const nlohmann::json::exception& error) {  // a number out of range
    throw Error(Errc::corrupt, path.string() + ": is not valid JSON: " + printable(error.what()));
  }
}

nlohmann::json read_json(const MappedFile& file, std::int64_t max_bytes) {
  const auto bytes = file.bytes();
  if (static_cast<std::int64_t>(bytes.size()) > max_bytes) {
    throw Error(Errc::corrupt, file.path().string() + ": has " + std::to_string(bytes.size()) +
                                   " bytes; at most " + std::to_string(max_bytes) +
                                   " are expected of such a file");
  }
  return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, file.path());
}

bool stays_inside(const std::filesystem::path& relative) {
  if (relative.empty() || relative.is_absolute() ||
      relative.native().find('\0') != std::string::npos)
    return false;
  return std::none_of(relative.begin(), relative.end(),
                      [](const auto& part) { return part == ".."; });
}

}  // namespace mneme::weights
