// The tables of a memory file, format 1.
#pragma once

#include <cstdint>

namespace mneme::memory {

class Database;

/// `application_id` of every memory file: "MNEM".
inline constexpr std::int64_t kApplicationId = 0x4D4E454D;
/// The format that this program writes; it stands in `user_version`.
inline constexpr std::int64_t kFormat = 1;
/// Bytes of a page. States are long, so pages are larger than SQLite's 4096; much larger ones would
/// make a chat turn write more than it must.
inline constexpr std::int64_t kPageBytes = 8192;
/// The most bytes of text in one compressed part of a document: a span is read by unpacking the
/// parts it touches.
inline constexpr std::int64_t kTextPartBytes = 256 << 10;
/// The most bytes in one stored part of a state or an index.
inline constexpr std::int64_t kBlobPartBytes = 1 << 20;
/// `spans.consolidation` is 0, or how often the state was made smaller, or one of these: the state
/// was given up (or not taken in), or it is whole and cannot be made smaller.
inline constexpr std::int64_t kTextOnly = 1000;
inline constexpr std::int64_t kCannotShrink = -1;
/// The most that `turns.number` can be: far more than any chat has, and far from where integers end.
inline constexpr std::int64_t kMaxTurnNumber = std::int64_t{1} << 53;

/// At most so many pages hold a blob of that many bytes in parts: its overflow pages, and for each
/// part the leaf that it begins on, a share of the pages above, and of the table that finds moved
/// pages.
constexpr std::int64_t pages_of_blob(std::int64_t bytes) {
  const auto parts = (bytes + kBlobPartBytes - 1) / kBlobPartBytes;
  const auto overflow = (bytes + kPageBytes - 5) / (kPageBytes - 4);
  return overflow + 3 * parts + overflow / 1024 + 2;
}

/// Writes tables, application id and format into an empty database in one transaction; does nothing
/// if another process has just done so. Throws Error; then the file is as empty as before.
void create_schema(Database& database);

/// Refuses what is not a memory file of this format: throws `corrupt` (another kind of file, or
/// tables, indexes, triggers or views that differ from ours) or `mismatch` (a newer format, or an
/// older one before its upgrade).
void check_schema(Database& database);

}  // namespace mneme::memory
