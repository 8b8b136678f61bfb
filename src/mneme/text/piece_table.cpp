#include "mneme/text/piece_table.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace mneme::text {

namespace {

std::uint32_t hash_of(std::string_view bytes) noexcept {
  constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15u;
  std::uint64_t hash = bytes.size() * kMultiplier;
  const auto mix = [&](std::uint64_t value) {
    hash = (hash ^ value) * kMultiplier;
    hash ^= hash >> 29;
  };
  std::uint64_t value;
  while (bytes.size() >= sizeof value) {
    std::memcpy(&value, bytes.data(), sizeof value);
    mix(value);
    bytes.remove_prefix(sizeof value);
  }
  value = 0;
  for (const unsigned char byte : bytes) value = value << 8 | byte;
  mix(value);
  return static_cast<std::uint32_t>(hash >> 32);
}

}  // namespace

PieceTable::PieceTable(const std::vector<std::string>& pieces) {
  starts_.reserve(pieces.size() + 1);
  slots_.resize(std::bit_ceil(std::max<std::size_t>(16, 2 * pieces.size())));
  for (const auto& piece : pieces) {
    bytes_.append(piece);
    starts_.push_back(bytes_.size());
  }
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    const auto& piece = pieces[id];
    if (piece.empty() || find(piece) >= 0) continue;
    longest_ = std::max(longest_, piece.size());
    const auto hash = hash_of(piece);
    std::size_t at = hash & mask;
    while (slots_[at].id >= 0) at = (at + 1) & mask;
    slots_[at] = {hash, static_cast<std::int32_t>(id)};
  }
}

std::int32_t PieceTable::find(std::string_view bytes) const noexcept {
  if (slots_.empty() || bytes.empty()) return -1;
  const auto hash = hash_of(bytes);
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t at = hash & mask; slots_[at].id >= 0; at = (at + 1) & mask) {
    if (slots_[at].hash == hash && piece(slots_[at].id) == bytes) return slots_[at].id;
  }
  return -1;
}

std::optional<std::int32_t> PieceTable::id_of(std::string_view bytes) const noexcept {
  const auto id = find(bytes);
  return id < 0 ? std::nullopt : std::optional(id);
}

}  // namespace mneme::text
