// Chat sessions and stored search indexes.
#include "mneme/core/checksum.h"
#include "mneme/memory/clock.h"
#include "mneme/memory/memory_file.h"
#include "mneme/memory/provenance.h"
#include "mneme/memory/schema.h"
#include "mneme/memory/sqlite.h"

#include <cstring>
#include <utility>

namespace mneme {

using memory::Transaction;

namespace {

constexpr std::size_t kMaxSessionNameBytes = 256;
constexpr std::size_t kMaxRoleBytes = 64;
constexpr std::int64_t kMaxIndexBytes = std::int64_t{1} << 34;

}  // namespace

void MemoryFile::check_session_name(std::string_view name) {
  // It becomes part of the labels of what the session's turns are moved into.
  if (name.empty() || name.size() > kMaxSessionNameBytes || find_invalid_utf8(name) >= 0 ||
      has_control_characters(name)) {
    throw Error(Errc::invalid,
                "a session needs a name of 1 to 256 bytes of UTF-8 without control characters");
  }
}

std::int64_t MemoryFile::session_id(std::string_view name, bool create) {
  if (create) {
    check_session_name(name);
    db_->prepare("INSERT INTO sessions (name, created_at) VALUES (?, ?) ON CONFLICT DO NOTHING")
        .bind(name, memory::unix_seconds())
        .run();
  }
  auto row = db_->prepare("SELECT id FROM sessions WHERE name = ?");
  if (!row.bind(name).step()) {
    throw Error(Errc::not_found,
                path_.string() + ": there is no session \"" + std::string(name) + "\"");
  }
  return row.integer(0);
}

std::vector<SessionInfo> MemoryFile::sessions() const {
  auto row = db_->prepare(
      "SELECT name, created_at, (SELECT count(*) FROM turns t WHERE t.session_id = s.id) FROM "
      "sessions s ORDER BY id");
  std::vector<SessionInfo> found;
  while (row.step()) found.push_back({std::string(row.text(0)), row.integer(2), row.integer(1)});
  return found;
}

std::vector<Turn> MemoryFile::turns(std::string_view session) const {
  auto row = db_->prepare(
      "SELECT t.number, t.role, t.text, t.ids, t.provenance, t.written_at FROM turns t JOIN "
      "sessions s ON s.id = t.session_id "
      "WHERE s.name = ? ORDER BY t.number");
  row.bind(session);
  std::vector<Turn> found;
  while (row.step()) {
    Turn turn;
    turn.number = row.integer(0);
    turn.role = std::string(row.text(1));
    turn.text = std::string(row.text(2));
    const auto ids = row.blob(3);
    turn.ids.resize(ids.size() / sizeof(std::int32_t));
    if (!turn.ids.empty())
      std::memcpy(turn.ids.data(), ids.data(), turn.ids.size() * sizeof(std::int32_t));
    turn.provenance = memory::read_provenance(row.text(4));
    turn.written_at_s = row.integer(5);
    found.push_back(std::move(turn));
  }
  return found;
}

void MemoryFile::check_turns(std::span<const Turn> turns) const {
  for (const auto& turn : turns) {
    if (turn.role.empty() || turn.role.size() > kMaxRoleBytes) {
      throw Error(Errc::invalid, path_.string() + ": a turn needs a role of 1 to 64 bytes");
    }
    if (static_cast<std::int64_t>(turn.text.size()) > kMaxTurnBytes ||
        static_cast<std::int64_t>(turn.ids.size() * sizeof(std::int32_t)) > kMaxTurnBytes) {
      throw Error(Errc::full, path_.string() + ": a turn of " + std::to_string(turn.text.size()) +
                                  " bytes is longer than a session takes (16 MiB)");
    }
    if (find_invalid_utf8(turn.text) >= 0)
      throw Error(Errc::invalid, path_.string() + ": a turn's text is not valid UTF-8");
    // It could not be moved out of the context later: no document holds one.
    if (turn.text.find('\0') != std::string::npos)
      throw Error(Errc::invalid, path_.string() + ": a turn's text holds a zero byte");
  }
}

void MemoryFile::insert_turn(std::int64_t session, std::int64_t number, const Turn& turn) {
  check_provenance(turn.provenance);
  const auto ids =
      turn.ids.empty() ? std::nullopt : std::optional(std::as_bytes(std::span(turn.ids)));
  const auto provenance = memory::write_provenance(turn.provenance);
  const auto at = turn.written_at_s > 0 ? turn.written_at_s : memory::unix_seconds();
  db_->prepare(
         "INSERT INTO turns (session_id, number, role, text, ids, provenance, written_at) VALUES "
         "(?, ?, ?, ?, ?, ?, ?)")
      .bind(session, number, turn.role, turn.text, ids, provenance, at)
      .run();
}

std::int64_t MemoryFile::append_turns(std::string_view session, std::span<const Turn> turns) {
  check_turns(turns);
  begin_writing(true);
  Transaction transaction(*db_, Transaction::Kind::write);
  const auto id = session_id(session, true);
  std::int64_t number = 0;
  {
    // A number that a document holds is taken even if its turn is forgotten.
    auto row = db_->prepare(
        "SELECT max(coalesce((SELECT max(number) FROM turns WHERE session_id = ?1), 0), "
        "coalesce((SELECT max(last_turn) FROM documents WHERE session_id = ?1), 0))");
    if (row.bind(id).step()) number = row.integer(0);
  }
  if (number < 0 || number > memory::kMaxTurnNumber) {
    throw Error(Errc::corrupt, path_.string() + ": session \"" + std::string(session) +
                                   "\" claims a turn " + std::to_string(number) +
                                   "; run `mneme verify`");
  }
  for (const auto& turn : turns) insert_turn(id, ++number, turn);
  transaction.commit();
  return number;
}

std::int64_t MemoryFile::moved_turns(std::string_view session) const {
  auto row = db_->prepare(
      "SELECT coalesce(max(d.last_turn), 0) FROM documents d JOIN sessions s ON s.id = "
      "d.session_id WHERE s.name = ?");
  return row.bind(session).step() ? row.integer(0) : 0;
}

// Notes which turns of its session a document holds; part of the caller's transaction.
void MemoryFile::record_turns(std::int64_t document, std::int64_t session, std::int64_t first,
                              std::int64_t last) {
  // Turns that somebody forgot while the document was being made must not come back with it.
  auto row = db_->prepare("SELECT count(*) FROM turns WHERE session_id = ? AND number IN (?, ?)");
  if (!row.bind(session, first, last).step() || row.integer(0) != (first == last ? 1 : 2)) {
    throw Error(Errc::not_found,
                path_.string() + ": a turn of what was to be stored has been forgotten meanwhile");
  }
  db_->prepare("UPDATE documents SET first_turn = ?, last_turn = ? WHERE id = ? AND session_id = ?")
      .bind(first, last, document, session)
      .run();
}

ForgetReport MemoryFile::clear_session(std::string_view session) {
  std::vector<std::int64_t> documents;
  std::int64_t id = 0;
  {
    Transaction snapshot(*db_, Transaction::Kind::read);
    id = session_id(session, false);
    auto row = db_->prepare("SELECT id FROM documents WHERE session_id = ?");
    row.bind(id);
    while (row.step()) documents.push_back(row.integer(0));
  }
  return forget_documents(std::move(documents), id);
}

void MemoryFile::put_index(const IndexInfo& index, std::string_view blob) {
  if (index.name.empty() || index.name.size() > kMaxSessionNameBytes || index.spec.size() > 4096 ||
      index.model_digest.size() > 4096 || static_cast<std::int64_t>(blob.size()) > kMaxIndexBytes) {
    throw Error(
        Errc::invalid,
        path_.string() + ": an index needs a name of 1 to 256 bytes and has at most 16 GiB");
  }
  begin_writing(false);
  Transaction transaction(*db_, Transaction::Kind::write);
  db_->prepare("DELETE FROM index_parts WHERE index_id IN (SELECT id FROM indexes WHERE name = ?)")
      .bind(index.name)
      .run();
  db_->prepare("DELETE FROM indexes WHERE name = ?").bind(index.name).run();
  db_->prepare("INSERT INTO digests (value) VALUES (?) ON CONFLICT DO NOTHING")
      .bind(index.model_digest)
      .run();
  const auto bytes = memory::bytes_of(blob);
  db_->prepare(
         "INSERT INTO indexes (name, spec, model_digest, generation, bytes, crc32c, written_at) "
         "VALUES (?, ?, (SELECT id FROM digests WHERE value = ?), ?, ?, ?, ?)")
      .bind(index.name, index.spec, index.model_digest, index.generation, bytes.size(),
            crc32c(bytes), memory::unix_seconds())
      .run();
  const auto id = db_->last_row();
  auto insert = db_->prepare("INSERT INTO index_parts (index_id, part, data) VALUES (?, ?, ?)");
  std::int64_t part = 0;
  for (std::size_t at = 0; at < bytes.size(); at += memory::kBlobPartBytes, ++part) {
    insert
        .bind(id, part,
              bytes.subspan(at, std::min<std::size_t>(memory::kBlobPartBytes, bytes.size() - at)))
        .run();
  }
  release_free_pages();
  transaction.commit();
  checkpoint();
}

std::optional<IndexInfo> MemoryFile::find_index(std::string_view name) const {
  auto row = db_->prepare(
      "SELECT i.name, i.spec, m.value, i.generation, i.bytes FROM indexes i JOIN digests m ON m.id "
      "= i.model_digest "
      "WHERE i.name = ?");
  if (!row.bind(name).step()) return std::nullopt;
  return IndexInfo{std::string(row.text(0)), std::string(row.text(1)), std::string(row.text(2)),
                   row.integer(3), row.integer(4)};
}

std::optional<std::string> MemoryFile::get_index(std::string_view name) const {
  Transaction snapshot(*db_, Transaction::Kind::read);
  auto row = db_->prepare("SELECT id, bytes, crc32c FROM indexes WHERE name = ?");
  if (!row.bind(name).step()) return std::nullopt;
  auto parts = db_->prepare("SELECT data FROM index_parts WHERE index_id = ? ORDER BY part");
  parts.bind(row.integer(0));
  std::string blob;
  while (parts.step() && static_cast<std::int64_t>(blob.size()) <= row.integer(1))
    blob += parts.text(0);
  const bool whole = static_cast<std::int64_t>(blob.size()) == row.integer(1) &&
                     crc32c(memory::bytes_of(blob)) == static_cast<std::uint32_t>(row.integer(2));
  if (!whole) {
    ++damaged_reps_;
    return std::nullopt;
  }
  return blob;
}

}  // namespace mneme
