// Representations: small ones in their row, states in parts beside it.
#include "mneme/core/checksum.h"
#include "mneme/memory/clock.h"
#include "mneme/memory/memory_file.h"
#include "mneme/memory/provenance.h"
#include "mneme/memory/schema.h"
#include "mneme/memory/sqlite.h"

#include <algorithm>
#include <fmt/format.h>
#include <utility>

namespace mneme {

using memory::Statement;
using memory::Transaction;

namespace {

// The most bytes of one representation, and of one that lies in its row.
constexpr std::int64_t kMaxRepBytes = std::int64_t{1} << 32;
constexpr std::int64_t kMaxSmallRepBytes = std::int64_t{16} << 20;
constexpr std::size_t kMaxNameBytes = 4096;
// Bytes of states that go into one transaction: what the -wal holds at most beside the file.
constexpr std::int64_t kBatchBytes = std::int64_t{4} << 20;

#define MNEME_REP_COLUMNS                                                                       \
  "SELECT r.id, r.span_id, r.kind, m.value, r.layer, c.spec, p.value, r.n_vec, r.d, r.bytes, "  \
  "r.provenance, "                                                                              \
  "r.uses, r.written_at, r.crc32c, r.blob FROM reps r JOIN digests m ON m.id = r.model_digest " \
  "JOIN codecs c ON c.id = r.codec JOIN digests p ON p.id = r.prefix_digest "

constexpr const char* kByKey = MNEME_REP_COLUMNS
    "WHERE r.span_id = ? AND r.kind = ? AND m.value = ? AND p.value = ? AND r.layer = ? AND c.spec "
    "= ?";
constexpr const char* kByKeyAnyCodec = MNEME_REP_COLUMNS
    "WHERE r.span_id = ? AND r.kind = ? AND m.value = ? AND p.value = ? AND r.layer = ? ORDER BY "
    "r.bytes DESC, r.id";
constexpr const char* kOfSpan = MNEME_REP_COLUMNS "WHERE r.span_id = ? ORDER BY r.id";
constexpr const char* kById = MNEME_REP_COLUMNS "WHERE r.id = ?";
constexpr const char* kOfKind = MNEME_REP_COLUMNS
    "WHERE r.kind = ? AND r.model_digest = (SELECT id FROM digests WHERE value = ?) ORDER BY "
    "r.span_id, r.id";
#undef MNEME_REP_COLUMNS

struct Column {
  enum : int {
    kId,
    kSpan,
    kKind,
    kModel,
    kLayer,
    kCodec,
    kPrefix,
    kVectors,
    kWidth,
    kBytes,
    kProvenance,
    kUses,
    kWritten,
    kCrc,
    kBlob
  };
};

std::optional<RepKind> rep_kind_of(std::string_view name) {
  for (int k = 0; k <= static_cast<int>(RepKind::latent); ++k) {
    if (rep_kind_name(static_cast<RepKind>(k)) == name) return static_cast<RepKind>(k);
  }
  return std::nullopt;
}

void check_rep(const Rep& rep) {
  const auto refuse = [&](const std::string& why) {
    throw Error(Errc::invalid, "a " + std::string(rep_kind_name(rep.key.kind)) +
                                   " representation of span " + std::to_string(rep.key.span) + " " +
                                   why);
  };
  const auto limit = is_state(rep.key.kind) ? kMaxRepBytes : kMaxSmallRepBytes;
  if (static_cast<std::int64_t>(rep.blob.size()) > limit)
    refuse("has more than " + std::to_string(limit) + " bytes");
  if (rep.key.model_digest.size() > kMaxNameBytes || rep.key.codec.size() > kMaxNameBytes ||
      rep.key.prefix_digest.size() > kMaxNameBytes) {
    refuse("has a digest or codec longer than 4096 bytes");
  }
  if (rep.n_vec < 0 || rep.d < 0) refuse("has a negative number of vectors or dimensions");
}

std::int64_t intern(memory::Database& database, const char* insert, const char* find,
                    std::string_view value) {
  database.prepare(insert).bind(value).run();
  auto row = database.prepare(find);
  if (!row.bind(value).step())
    throw Error(Errc::corrupt, database.path().string() + ": a name that was stored is not found");
  return row.integer(0);
}

std::int64_t intern_digest(memory::Database& database, std::string_view value) {
  return intern(database, "INSERT INTO digests (value) VALUES (?) ON CONFLICT DO NOTHING",
                "SELECT id FROM digests WHERE value = ?", value);
}

std::int64_t intern_codec(memory::Database& database, std::string_view value) {
  return intern(database, "INSERT INTO codecs (spec) VALUES (?) ON CONFLICT DO NOTHING",
                "SELECT id FROM codecs WHERE spec = ?", value);
}

}  // namespace

RepInfo MemoryFile::read_rep_info(Statement& row) const {
  RepInfo info;
  info.key.span = row.integer(Column::kSpan);
  const auto kind = rep_kind_of(row.text(Column::kKind));
  if (!kind) {
    throw Error(Errc::corrupt, path_.string() + ": representation " +
                                   std::to_string(row.integer(Column::kId)) +
                                   " is of no known kind; run `mneme verify`");
  }
  info.key.kind = *kind;
  info.key.model_digest = std::string(row.text(Column::kModel));
  info.key.layer = row.integer(Column::kLayer);
  info.key.codec = std::string(row.text(Column::kCodec));
  info.key.prefix_digest = std::string(row.text(Column::kPrefix));
  info.n_vec = row.integer(Column::kVectors);
  info.d = row.integer(Column::kWidth);
  info.bytes = row.integer(Column::kBytes);
  info.provenance = memory::read_provenance(row.text(Column::kProvenance));
  info.uses = row.integer(Column::kUses);
  info.written_at_s = row.integer(Column::kWritten);
  return info;
}

std::optional<Rep> MemoryFile::read_rep(Statement& row) const {
  Rep rep;
  static_cast<RepInfo&>(rep) = read_rep_info(row);
  bool whole = false;
  if (!row.is_null(Column::kBlob)) {
    rep.blob = std::string(row.text(Column::kBlob));
    whole = static_cast<std::int64_t>(rep.blob.size()) == rep.bytes;
  } else if (rep.bytes >= 0 && rep.bytes <= kMaxRepBytes) {
    // The parts that are there bound the memory, not the length that a file claims.
    const auto id = row.integer(Column::kId);
    auto parts =
        db_->prepare("SELECT id, length(data) FROM state_parts WHERE rep_id = ? ORDER BY part");
    parts.bind(id);
    std::vector<std::pair<std::int64_t, std::int64_t>> found;
    std::int64_t total = 0;
    while (parts.step() && total <= rep.bytes) {
      found.emplace_back(parts.integer(0), parts.integer(1));
      total += found.back().second;
    }
    if (total == rep.bytes) {
      rep.blob.resize(static_cast<std::size_t>(total));
      std::span<char> rest(rep.blob);
      for (const auto& [part, length] : found) {
        db_->read_blob("state_parts", "data", part,
                       std::as_writable_bytes(rest.first(static_cast<std::size_t>(length))));
        rest = rest.subspan(static_cast<std::size_t>(length));
      }
      whole = true;
    }
  }
  if (whole &&
      crc32c(memory::bytes_of(rep.blob)) == static_cast<std::uint32_t>(row.integer(Column::kCrc)))
    return rep;
  ++damaged_reps_;
  return std::nullopt;
}

std::optional<Rep> MemoryFile::get_where(const RepKey& key, bool any_codec) const {
  Transaction snapshot(*db_, Transaction::Kind::read);
  auto row = db_->prepare(any_codec ? kByKeyAnyCodec : kByKey);
  if (any_codec) {
    row.bind(key.span, rep_kind_name(key.kind), key.model_digest, key.prefix_digest, key.layer);
  } else {
    row.bind(key.span, rep_kind_name(key.kind), key.model_digest, key.prefix_digest, key.layer,
             key.codec);
  }
  while (row.step()) {
    if (auto rep = read_rep(row)) return rep;
  }
  return std::nullopt;
}

std::optional<Rep> MemoryFile::get_by_id(std::int64_t rep) const {
  auto row = db_->prepare(kById);
  return row.bind(rep).step() ? read_rep(row) : std::nullopt;
}

std::optional<Rep> MemoryFile::get(const RepKey& key) const { return get_where(key, false); }
std::optional<Rep> MemoryFile::get_any_codec(const RepKey& key) const {
  return get_where(key, true);
}

std::optional<std::int64_t> MemoryFile::find_rep(const RepKey& key) const {
  auto row = db_->prepare(kByKey);
  row.bind(key.span, rep_kind_name(key.kind), key.model_digest, key.prefix_digest, key.layer,
           key.codec);
  return row.step() ? std::optional(row.integer(Column::kId)) : std::nullopt;
}

bool MemoryFile::has(const RepKey& key) const { return find_rep(key).has_value(); }

std::vector<RepInfo> MemoryFile::reps(std::int64_t span) const {
  auto row = db_->prepare(kOfSpan);
  row.bind(span);
  std::vector<RepInfo> found;
  while (row.step()) found.push_back(read_rep_info(row));
  return found;
}

void MemoryFile::for_each_rep(RepKind kind, std::string_view model_digest,
                              const std::function<void(const Rep&)>& each) const {
  Transaction snapshot(*db_, Transaction::Kind::read);
  auto row = db_->prepare(kOfKind);
  row.bind(rep_kind_name(kind), model_digest);
  while (row.step()) {
    if (const auto rep = read_rep(row)) each(*rep);
  }
}

void MemoryFile::delete_rep(std::int64_t rep) {
  bool state = false;
  {
    auto row = db_->prepare("SELECT blob IS NULL FROM reps WHERE id = ?");
    state = row.bind(rep).step() && row.integer(0) != 0;
  }
  if (state) {
    const auto before = used_pages();
    db_->prepare("DELETE FROM state_parts WHERE rep_id = ?").bind(rep).run();
    raise_counter("state_pages", used_pages() - before);
  }
  db_->prepare("DELETE FROM reps WHERE id = ?").bind(rep).run();
}

std::int64_t MemoryFile::write_rep(std::int64_t span, const Rep& rep) {
  check_rep(rep);
  std::int64_t own = 0, uses = rep.uses;
  {
    auto row = db_->prepare("SELECT document_id FROM spans WHERE id = ?");
    if (!row.bind(span).step())
      throw Error(Errc::not_found,
                  path_.string() + ": there is no span with number " + std::to_string(span));
    own = row.integer(0);
  }
  check_provenance(rep.provenance);
  std::optional<std::int64_t> old;
  {
    auto row = db_->prepare(kByKey);
    if (row.bind(span, rep_kind_name(rep.key.kind), rep.key.model_digest, rep.key.prefix_digest,
                 rep.key.layer, rep.key.codec)
            .step()) {
      old = row.integer(Column::kId);
      uses = std::max(uses, row.integer(Column::kUses));
    }
  }
  if (old) delete_rep(*old);

  const bool state = is_state(rep.key.kind);
  const auto bytes = memory::bytes_of(rep.blob);
  const auto small = state ? std::nullopt : std::optional(bytes);
  const auto provenance = memory::write_provenance(rep.provenance, own);
  const auto model = intern_digest(*db_, rep.key.model_digest),
             prefix = intern_digest(*db_, rep.key.prefix_digest);
  db_->prepare(
         "INSERT INTO reps (span_id, kind, model_digest, layer, codec, prefix_digest, n_vec, d, "
         "blob, bytes, crc32c, "
         "provenance, uses, written_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
      .bind(span, rep_kind_name(rep.key.kind), model, rep.key.layer,
            intern_codec(*db_, rep.key.codec), prefix, rep.n_vec, rep.d, small, bytes.size(),
            crc32c(bytes), provenance, uses, memory::unix_seconds())
      .run();
  const auto id = db_->last_row();
  if (!state) return id;
  const auto before = used_pages();
  auto insert = db_->prepare("INSERT INTO state_parts (rep_id, part, data) VALUES (?, ?, ?)");
  std::int64_t part = 0;
  for (std::size_t at = 0; at < bytes.size(); at += memory::kBlobPartBytes, ++part) {
    insert
        .bind(id, part,
              bytes.subspan(at, std::min<std::size_t>(memory::kBlobPartBytes, bytes.size() - at)))
        .run();
  }
  raise_counter("state_pages", used_pages() - before);
  return id;
}

// Stores one representation as part of a transaction; nothing if it has to wait for the next one.
std::optional<StoreReport::Obstacle> MemoryFile::put_one(const Rep& rep, Admission admission,
                                                         std::int64_t& wal_pages,
                                                         StoreReport& report) {
  {
    auto row = db_->prepare("SELECT 1 FROM spans WHERE id = ?");
    if (!row.bind(rep.key.span).step()) return StoreReport::Obstacle::gone;
    auto source = db_->prepare("SELECT 1 FROM documents WHERE id = ?");
    for (const auto document : rep.provenance) {
      if (!source.bind(document).step()) return StoreReport::Obstacle::gone;
    }
  }
  if (!is_state(rep.key.kind)) {
    write_rep(rep.key.span, rep);
    if (rep.key.kind == RepKind::embedding) bump_generation();
    return StoreReport::Obstacle::none;
  }
  const auto pages = memory::pages_of_blob(static_cast<std::int64_t>(rep.blob.size()));
  switch (make_room(pages, rep.key, admission, wal_pages, report)) {
    case Room::here:
      break;
    case Room::next_transaction:
      return std::nullopt;
    case Room::none:
      // An old form of the very same state must not stand in the way of the new one.
      if (const auto old = find_rep(rep.key)) {
        delete_rep(*old);
        return std::nullopt;
      }
      db_->prepare(
             "UPDATE spans SET consolidation = ?2 WHERE id = ?1 AND NOT EXISTS "
             "(SELECT 1 FROM reps WHERE span_id = ?1 AND blob IS NULL)")
          .bind(rep.key.span, memory::kTextOnly)
          .run();
      return StoreReport::Obstacle::budget;
  }
  write_rep(rep.key.span, rep);
  db_->prepare("UPDATE spans SET consolidation = 0 WHERE id = ? AND consolidation <> 0")
      .bind(rep.key.span)
      .run();
  wal_pages += pages;
  return StoreReport::Obstacle::none;
}

StoreReport MemoryFile::put(std::span<const Rep> reps, Admission admission) {
  for (const auto& rep : reps) check_rep(rep);
  StoreReport report;
  const auto not_stored = [&](std::int64_t count, StoreReport::Obstacle obstacle,
                              const std::string& reason) {
    report.not_stored += count;
    if (report.obstacle != StoreReport::Obstacle::none) return;
    report.obstacle = obstacle;
    report.reason = reason;
  };
  for (std::size_t at = 0; at < reps.size();) {
    // What a transaction did counts only once it is committed.
    StoreReport done;
    std::vector<StoreReport::Obstacle> obstacles;
    std::size_t next = at;
    try {
      begin_writing(sync_states_);
      Transaction transaction(*db_, Transaction::Kind::write);
      auto wal_pages = leftover_wal_pages();
      for (std::int64_t bytes = 0; next < reps.size() && bytes < kBatchBytes; ++next) {
        const auto obstacle = put_one(reps[next], admission, wal_pages, done);
        if (!obstacle) break;
        bytes += static_cast<std::int64_t>(reps[next].blob.size());
        if (*obstacle == StoreReport::Obstacle::none) {
          ++done.stored;
        } else {
          obstacles.push_back(*obstacle);
        }
      }
      transaction.commit();
    } catch (const Error& failure) {
      if (failure.code() != Errc::busy && failure.code() != Errc::io) throw;
      const auto obstacle = !writable_                     ? StoreReport::Obstacle::read_only
                            : failure.code() == Errc::busy ? StoreReport::Obstacle::busy
                                                           : StoreReport::Obstacle::disk;
      not_stored(static_cast<std::int64_t>(reps.size() - at), obstacle, failure.what());
      break;
    }
    checkpoint();
    at = next;
    report.stored += done.stored;
    report.shrunk += done.shrunk;
    report.dropped += done.dropped;
    for (const auto obstacle : obstacles) {
      not_stored(
          1, obstacle,
          path_.string() +
              (obstacle == StoreReport::Obstacle::budget
                   ? fmt::format(": the budget of {:.0f} MiB is full of states that are as useful",
                                 static_cast<double>(budget_bytes_) / (1 << 20))
                   : ": what a state was made from has been replaced or forgotten meanwhile"));
    }
  }
  return report;
}

bool MemoryFile::drop_reps(std::span<const RepKey> keys) {
  if (keys.empty()) return true;
  return store_quietly([&] {
    begin_writing(false);
    Transaction transaction(*db_, Transaction::Kind::write);
    for (const auto& key : keys) {
      if (const auto rep = find_rep(key)) delete_rep(*rep);
    }
    transaction.commit();
    checkpoint();
  });
}

void MemoryFile::drop_states(std::optional<std::int64_t> span) {
  begin_writing(false);
  Transaction transaction(*db_, Transaction::Kind::write);
  std::vector<std::int64_t> reps;
  {
    auto row =
        db_->prepare("SELECT id FROM reps WHERE blob IS NULL AND (?1 IS NULL OR span_id = ?1)");
    row.bind(span);
    while (row.step()) reps.push_back(row.integer(0));
  }
  for (const auto rep : reps) delete_rep(rep);
  transaction.commit();
  checkpoint();
}

}  // namespace mneme
