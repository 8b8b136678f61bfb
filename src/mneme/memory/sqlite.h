// SQLite as the memory file uses it: one guarded connection, cached statements, transactions,
// errors in one line.
#pragma once

#include "mneme/core/error.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

struct sqlite3;
struct sqlite3_stmt;

namespace mneme::memory {

class Database;

/// What a writer that was interrupted left cannot be read before it is put right, and this connection
/// may not write. Opening the file once for writing, by somebody who may, does it.
class RecoveryNeeded : public Error {
 public:
  explicit RecoveryNeeded(const std::filesystem::path& path);
};

/// A prepared statement, borrowed from its connection's cache and given back reset when it goes out
/// of scope. Columns and parameters count from 0. Views returned by text() and blob() hold until
/// the next step() or the end of the statement.
class Statement {
 public:
  Statement(Statement&& other) noexcept;
  Statement& operator=(Statement&&) = delete;
  ~Statement();

  /// Binds all parameters, in order: integers, strings (text), byte spans (blob), nullptr and empty
  /// optionals (NULL). The bytes of strings and spans must live until the statement has run.
  template <class... Values>
  Statement& bind(const Values&... values) {
    reset();
    int parameter = 0;
    (bind_one(parameter++, values), ...);
    return *this;
  }

  /// Advances to the next row; false when there is none. Throws Error.
  bool step();
  /// Runs to the end and discards rows. Throws Error.
  void run();
  /// Ends the current execution: locks and views go, the bindings stay.
  void reset();

  [[nodiscard]] bool is_null(int column) const;
  [[nodiscard]] std::int64_t integer(int column) const;
  [[nodiscard]] std::string_view text(int column) const;
  [[nodiscard]] std::span<const std::byte> blob(int column) const;

 private:
  friend class Database;
  Statement(Database& database, const std::string& sql, sqlite3_stmt* handle)
      : database_(&database), sql_(&sql), handle_(handle) {}

  void bind_integer(int parameter, std::int64_t value);
  void bind_text(int parameter, std::string_view value);
  void bind_blob(int parameter, std::span<const std::byte> value);
  void bind_null(int parameter);
  template <class Value>
  struct is_optional : std::false_type {};
  template <class Value>
  struct is_optional<std::optional<Value>> : std::true_type {};
  template <class Value>
  void bind_one(int parameter, const Value& value) {
    if constexpr (std::is_same_v<Value, std::nullptr_t>) {
      bind_null(parameter);
    } else if constexpr (is_optional<Value>::value) {
      if (value) {
        bind_one(parameter, *value);
      } else {
        bind_null(parameter);
      }
    } else if constexpr (std::is_integral_v<Value>) {
      bind_integer(parameter, static_cast<std::int64_t>(value));
    } else if constexpr (std::is_convertible_v<const Value&, std::string_view>) {
      bind_text(parameter, value);
    } else {
      bind_blob(parameter, value);
    }
  }

  Database* database_;
  const std::string* sql_;
  sqlite3_stmt* handle_;
};

/// One connection to a file that may be hostile: DEFENSIVE, trusted_schema off, no triggers, views
/// or extensions run, lengths limited. For one thread at a time; never carry it over fork().
class Database {
 public:
  enum class Mode { read_only, immutable, read_write, create };

  /// Opens the file; reads nothing yet. Throws `io` if the operating system refuses.
  Database(const std::filesystem::path& path, Mode mode, std::chrono::milliseconds busy_timeout);
  /// A database in memory, for comparing schemas.
  Database();
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  /// The statement of that SQL, prepared once; a second one is prepared while the first is still
  /// borrowed.
  Statement prepare(std::string_view sql);
  /// Runs statements without parameters and rows.
  void execute(const std::string& sql);
  /// The first column of the first row as an integer, e.g. of `PRAGMA page_count`; 0 without a row.
  std::int64_t integer(std::string_view sql);
  /// The first column of the first row as text; empty without a row.
  std::string text(std::string_view sql);

  /// Copies `bytes` of one blob, from its start, without building it in memory first. Throws
  /// `corrupt` if the blob has another size.
  void read_blob(const char* table, const char* column, std::int64_t row,
                 std::span<std::byte> bytes);

  /// Writes a compact copy of what a reader sees into the new file `to`. Throws Error; it speaks of
  /// `named` where the copy is what cannot be written.
  void vacuum_into(const std::filesystem::path& to, const std::filesystem::path& named);

  [[nodiscard]] bool in_transaction() const;
  /// Whether nothing can be written through this connection: opened so, or the file is
  /// write-protected.
  [[nodiscard]] bool read_only() const;
  [[nodiscard]] std::int64_t last_row() const;
  /// Rows changed by the last statement.
  [[nodiscard]] std::int64_t changes() const;
  void set_busy_timeout(std::chrono::milliseconds timeout);

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// The path that messages name from now on, for a file that gets another name when it is done.
  void call_it(std::filesystem::path path) { path_ = std::move(path); }
  [[nodiscard]] sqlite3* handle() const { return handle_; }

  /// Throws the Error that belongs to an SQLite result code.
  [[noreturn]] void fail(int code) const { fail(code, path_); }

 private:
  friend class Statement;
  void configure(std::chrono::milliseconds busy_timeout);
  void give_back(const std::string& sql, sqlite3_stmt* statement);
  [[noreturn]] void fail(int code, const std::filesystem::path& path) const;

  std::filesystem::path path_;
  sqlite3* handle_ = nullptr;
  std::unordered_map<std::string, std::vector<sqlite3_stmt*>> idle_;
};

/// A transaction that rolls back unless committed. A reading one inside another transaction is part
/// of that one.
class Transaction {
 public:
  enum class Kind { read, write };

  /// A writing transaction takes the write lock at once: throws `busy` if another process keeps it
  /// beyond the timeout, `io` if the file cannot be written. Writing transactions do not nest.
  Transaction(Database& database, Kind kind);
  ~Transaction();
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;

  /// Makes the changes permanent; throws Error, and then nothing has changed.
  void commit();

 private:
  Database& database_;
  bool open_ = false;
};

/// The bytes of a string.
inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span<const char>(text.data(), text.size()));
}

}  // namespace mneme::memory
