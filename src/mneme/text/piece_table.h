// PieceTable: the vocabulary, each entry's bytes by id and the id by the bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::text {

/// Entries in one block of bytes, found by an open-addressing hash table: a look-up touches one
/// slot and compares bytes.
class PieceTable {
 public:
  PieceTable() = default;
  /// pieces[id] is the entry's bytes; an empty one is a hole. Of equal entries the first is found
  /// by its bytes.
  explicit PieceTable(const std::vector<std::string>& pieces);

  /// One more than the largest id.
  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(starts_.size()) - 1; }
  [[nodiscard]] std::string_view piece(std::int32_t id) const {
    return std::string_view(bytes_).substr(starts_[id], starts_[id + 1] - starts_[id]);
  }
  /// The id of these bytes, or -1.
  [[nodiscard]] std::int32_t find(std::string_view bytes) const noexcept;
  /// The same, as the interfaces give it.
  [[nodiscard]] std::optional<std::int32_t> id_of(std::string_view bytes) const noexcept;
  /// Length of the longest entry in bytes.
  [[nodiscard]] std::size_t longest_bytes() const { return longest_; }

 private:
  struct Slot {
    std::uint32_t hash = 0;
    std::int32_t id = -1;
  };
  std::string bytes_;
  std::vector<std::uint64_t> starts_{0};
  std::vector<Slot> slots_;
  std::size_t longest_ = 0;
};

}  // namespace mneme::text
