#include "mneme/memory/sqlite.h"

#include <cstring>
#include <sqlite3.h>
#include <utility>

namespace mneme::memory {
namespace {

// Longest string or blob that a row of a memory file holds: texts and states are cut into parts far
// below this; session turns and indexed spans are the longest rows.
constexpr int kMaxRowBytes = 64 << 20;

// A path as an SQLite URI: what is not plainly a path character is escaped, so a name with `?` or
// `#` is only a name.
std::string uri_of(const std::filesystem::path& path, const char* query) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string uri = "file:";
  for (const unsigned char c : std::filesystem::absolute(path).string()) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '/' ||
        c == '.' || c == '-' || c == '_') {
      uri += static_cast<char>(c);
    } else {
      uri += '%';
      uri += kHex[c >> 4];
      uri += kHex[c & 15];
    }
  }
  return uri + query;
}

// Whether a result code says that something could not be written, rather than read.
bool is_of_writing(int code) {
  const int kind = code & 0xff;
  return kind == SQLITE_FULL || kind == SQLITE_CANTOPEN || kind == SQLITE_READONLY ||
         code == SQLITE_IOERR_WRITE || code == SQLITE_IOERR_FSYNC ||
         code == SQLITE_IOERR_TRUNCATE || code == SQLITE_IOERR_DIR_FSYNC ||
         code == SQLITE_IOERR_DELETE;
}

}  // namespace

RecoveryNeeded::RecoveryNeeded(const std::filesystem::path& path)
    : Error(Errc::io,
            path.string() +
                ": its last writer was interrupted, and putting that right needs leave to "
                "write the file and its folder; open it as somebody who may, or copy it "
                "with the files beside it to where you may") {}

Statement::Statement(Statement&& other) noexcept
    : database_(other.database_),
      sql_(other.sql_),
      handle_(std::exchange(other.handle_, nullptr)) {}

Statement::~Statement() {
  if (handle_ != nullptr) database_->give_back(*sql_, handle_);
}

bool Statement::step() {
  const int code = sqlite3_step(handle_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  const int extended = sqlite3_extended_errcode(database_->handle());
  const int reset_code = sqlite3_reset(handle_);
  database_->fail(reset_code == SQLITE_OK ? code : extended);
}

void Statement::run() {
  while (step()) {
  }
  reset();
}

void Statement::reset() { sqlite3_reset(handle_); }

bool Statement::is_null(int column) const {
  return sqlite3_column_type(handle_, column) == SQLITE_NULL;
}
std::int64_t Statement::integer(int column) const { return sqlite3_column_int64(handle_, column); }

std::string_view Statement::text(int column) const {
  // A blob's bytes as they are: a stored file decides the type of a column, not we.
  const auto* data = sqlite3_column_type(handle_, column) == SQLITE_BLOB
                         ? static_cast<const char*>(sqlite3_column_blob(handle_, column))
                         : reinterpret_cast<const char*>(sqlite3_column_text(handle_, column));
  if (data == nullptr) return {};
  return {data, static_cast<std::size_t>(sqlite3_column_bytes(handle_, column))};
}

std::span<const std::byte> Statement::blob(int column) const {
  const auto* data = static_cast<const std::byte*>(sqlite3_column_blob(handle_, column));
  if (data == nullptr) return {};
  return {data, static_cast<std::size_t>(sqlite3_column_bytes(handle_, column))};
}

void Statement::bind_integer(int parameter, std::int64_t value) {
  if (const int code = sqlite3_bind_int64(handle_, parameter + 1, value)) database_->fail(code);
}
void Statement::bind_text(int parameter, std::string_view value) {
  const char* data = value.data() == nullptr ? "" : value.data();
  if (const int code = sqlite3_bind_text64(handle_, parameter + 1, data, value.size(),
                                           SQLITE_STATIC, SQLITE_UTF8)) {
    database_->fail(code);
  }
}
void Statement::bind_blob(int parameter, std::span<const std::byte> value) {
  const void* data = value.data() == nullptr ? static_cast<const void*>("") : value.data();
  if (const int code =
          sqlite3_bind_blob64(handle_, parameter + 1, data, value.size(), SQLITE_STATIC)) {
    database_->fail(code);
  }
}
void Statement::bind_null(int parameter) {
  if (const int code = sqlite3_bind_null(handle_, parameter + 1)) database_->fail(code);
}

Database::Database(const std::filesystem::path& path, Mode mode,
                   std::chrono::milliseconds busy_timeout)
    : path_(path) {
  int flags = SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
  const char* query = "";
  switch (mode) {
    case Mode::read_only:
      flags |= SQLITE_OPEN_READONLY;
      break;
    case Mode::immutable:
      flags |= SQLITE_OPEN_READONLY;
      query = "?immutable=1";
      break;
    case Mode::read_write:
      flags |= SQLITE_OPEN_READWRITE;
      break;
    case Mode::create:
      flags |= SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
      break;
  }
  const int code = sqlite3_open_v2(uri_of(path, query).c_str(), &handle_, flags, nullptr);
  try {
    if (code != SQLITE_OK) fail(code);
    configure(busy_timeout);
  } catch (...) {
    sqlite3_close_v2(handle_);
    throw;
  }
}

Database::Database() : path_("(in memory)") {
  const int flags =
      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_MEMORY | SQLITE_OPEN_NOMUTEX;
  const int code = sqlite3_open_v2(":memory:", &handle_, flags, nullptr);
  try {
    if (code != SQLITE_OK) fail(code);
    configure(std::chrono::milliseconds(0));
  } catch (...) {
    sqlite3_close_v2(handle_);
    throw;
  }
}

void Database::configure(std::chrono::milliseconds busy_timeout) {
  sqlite3_extended_result_codes(handle_, 1);
  const struct {
    int option, value;
  } options[] = {{SQLITE_DBCONFIG_DEFENSIVE, 1},
                 {SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0},
                 {SQLITE_DBCONFIG_ENABLE_TRIGGER, 0},
                 {SQLITE_DBCONFIG_ENABLE_VIEW, 0},
                 {SQLITE_DBCONFIG_DQS_DML, 0},
                 {SQLITE_DBCONFIG_DQS_DDL, 0},
                 {SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0}};
  for (const auto& [option, value] : options) {
    if (const int code = sqlite3_db_config(handle_, option, value, nullptr)) fail(code);
  }
  // VACUUM attaches its scratch database, hence one.
  sqlite3_limit(handle_, SQLITE_LIMIT_ATTACHED, 1);
  sqlite3_limit(handle_, SQLITE_LIMIT_LENGTH, kMaxRowBytes);
  sqlite3_limit(handle_, SQLITE_LIMIT_SQL_LENGTH, 100'000);
  sqlite3_limit(handle_, SQLITE_LIMIT_COLUMN, 64);
  sqlite3_limit(handle_, SQLITE_LIMIT_EXPR_DEPTH, 64);
  sqlite3_limit(handle_, SQLITE_LIMIT_COMPOUND_SELECT, 16);
  sqlite3_limit(handle_, SQLITE_LIMIT_VDBE_OP, 1'000'000);
  sqlite3_limit(handle_, SQLITE_LIMIT_TRIGGER_DEPTH, 4);
  sqlite3_limit(handle_, SQLITE_LIMIT_WORKER_THREADS, 0);
  sqlite3_busy_timeout(handle_, static_cast<int>(busy_timeout.count()));
}

Database::~Database() {
  for (auto& [sql, statements] : idle_) {
    for (auto* statement : statements) sqlite3_finalize(statement);
  }
  sqlite3_close_v2(handle_);
}

Statement Database::prepare(std::string_view sql) {
  auto [entry, unused] = idle_.try_emplace(std::string(sql));
  sqlite3_stmt* statement = nullptr;
  if (!entry->second.empty()) {
    statement = entry->second.back();
    entry->second.pop_back();
  } else if (const int code = sqlite3_prepare_v3(handle_, sql.data(), static_cast<int>(sql.size()),
                                                 SQLITE_PREPARE_PERSISTENT, &statement, nullptr)) {
    fail(code);
  }
  return Statement(*this, entry->first, statement);
}

void Database::give_back(const std::string& sql, sqlite3_stmt* statement) {
  sqlite3_reset(statement);
  sqlite3_clear_bindings(statement);
  idle_[sql].push_back(statement);
}

void Database::execute(const std::string& sql) {
  if (const int code = sqlite3_exec(handle_, sql.c_str(), nullptr, nullptr, nullptr)) fail(code);
}

std::int64_t Database::integer(std::string_view sql) {
  auto statement = prepare(sql);
  return statement.step() ? statement.integer(0) : 0;
}

std::string Database::text(std::string_view sql) {
  auto statement = prepare(sql);
  return statement.step() ? std::string(statement.text(0)) : std::string();
}

void Database::read_blob(const char* table, const char* column, std::int64_t row,
                         std::span<std::byte> bytes) {
  sqlite3_blob* blob = nullptr;
  int code = sqlite3_blob_open(handle_, "main", table, column, row, 0, &blob);
  if (code == SQLITE_OK && static_cast<std::size_t>(sqlite3_blob_bytes(blob)) != bytes.size()) {
    sqlite3_blob_close(blob);
    throw Error(
        Errc::corrupt,
        path_.string() + ": a stored part has another length than recorded; run `mneme verify`");
  }
  if (code == SQLITE_OK)
    code = sqlite3_blob_read(blob, bytes.data(), static_cast<int>(bytes.size()), 0);
  sqlite3_blob_close(blob);
  if (code != SQLITE_OK) fail(code);
}

void Database::vacuum_into(const std::filesystem::path& to, const std::filesystem::path& named) {
  const auto name = to.string();
  sqlite3_stmt* statement = nullptr;
  int code = sqlite3_prepare_v2(handle_, "VACUUM INTO ?", -1, &statement, nullptr);
  if (code == SQLITE_OK) {
    sqlite3_bind_text64(statement, 1, name.data(), name.size(), SQLITE_STATIC, SQLITE_UTF8);
    code = sqlite3_step(statement);
  }
  sqlite3_finalize(statement);
  if (code != SQLITE_OK && code != SQLITE_DONE) fail(code, is_of_writing(code) ? named : path_);
}

bool Database::in_transaction() const { return sqlite3_get_autocommit(handle_) == 0; }
bool Database::read_only() const { return sqlite3_db_readonly(handle_, "main") == 1; }
std::int64_t Database::last_row() const { return sqlite3_last_insert_rowid(handle_); }
std::int64_t Database::changes() const { return sqlite3_changes64(handle_); }
void Database::set_busy_timeout(std::chrono::milliseconds timeout) {
  sqlite3_busy_timeout(handle_, static_cast<int>(timeout.count()));
}

void Database::fail(int code, const std::filesystem::path& path) const {
  const std::string where = path.string() + ": ";
  const int system_error = handle_ != nullptr ? sqlite3_system_errno(handle_) : 0;
  const auto system_reason = [&](const char* otherwise) -> std::string {
    return system_error != 0 ? std::strerror(system_error) : otherwise;
  };
  const std::string kept = path == path_ ? "what was stored before stays, " : "";
  switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      throw Error(Errc::busy,
                  where + "another process is writing this memory; try again when it is done");
    case SQLITE_FULL:
      throw Error(Errc::io, where + "the disk is full; " + kept + "free some space and retry");
    case SQLITE_READONLY:
      if (code == SQLITE_READONLY_ROLLBACK || code == SQLITE_READONLY_RECOVERY)
        throw RecoveryNeeded(path);
      throw Error(Errc::io, where + "cannot be written: the file or its folder is read-only");
    case SQLITE_PERM:
    case SQLITE_AUTH:
      throw Error(Errc::io, where + "permission denied");
    case SQLITE_CANTOPEN:
      throw Error(Errc::io, where + "cannot be opened: " + system_reason("no access"));
    case SQLITE_IOERR:
      // SQLite tells a full disk apart only where the system says ENOSPC: quotas and limits arrive
      // here.
      if (code == SQLITE_IOERR_WRITE || code == SQLITE_IOERR_FSYNC ||
          code == SQLITE_IOERR_TRUNCATE || code == SQLITE_IOERR_SHMSIZE) {
        throw Error(
            Errc::io,
            where + "cannot be written: the disk is full, a quota is reached or the disk fails; " +
                kept + "make room and retry");
      }
      throw Error(Errc::io,
                  where + "reading or writing failed: " + system_reason("input/output error"));
    case SQLITE_NOTADB:
      throw Error(Errc::corrupt, where + "not a mneme memory file");
    case SQLITE_CORRUPT:
    case SQLITE_FORMAT:
    case SQLITE_TOOBIG:
    case SQLITE_CONSTRAINT:
    case SQLITE_MISMATCH:
    case SQLITE_SCHEMA:
      throw Error(Errc::corrupt, where + "the memory file is damaged (" +
                                     sqlite3_errstr(code & 0xff) +
                                     "): take a backup, or read the sources again into a new file");
    case SQLITE_NOMEM:
      throw std::bad_alloc();
    default:
      throw Error(Errc::io,
                  where + "the database refused: " +
                      (handle_ != nullptr ? sqlite3_errmsg(handle_) : sqlite3_errstr(code)));
  }
}

Transaction::Transaction(Database& database, Kind kind) : database_(database) {
  if (database_.in_transaction()) {
    MNEME_ASSERT(kind == Kind::read);
    return;
  }
  database_.prepare(kind == Kind::write ? "BEGIN IMMEDIATE" : "BEGIN").run();
  open_ = true;
}

Transaction::~Transaction() {
  // SQLite may have rolled back by itself (a full disk); a failing ROLLBACK leaves nothing that
  // could be done better.
  if (open_ && database_.in_transaction())
    sqlite3_exec(database_.handle(), "ROLLBACK", nullptr, nullptr, nullptr);
}

void Transaction::commit() {
  if (!open_) return;
  database_.prepare("COMMIT").run();
  open_ = false;
}

}  // namespace mneme::memory
