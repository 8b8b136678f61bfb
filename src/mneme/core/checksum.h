// CRC-32C (Castagnoli), the checksum of stored states and representations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace mneme {

/// CRC-32C of `bytes`, continuing from `seed` (0 to start), so that pieces may be fed one after another.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t seed = 0) noexcept;

}  // namespace mneme
