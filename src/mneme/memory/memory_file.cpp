// Opening and closing, the connection's mode, meta and counters.
#include "mneme/memory/memory_file.h"

#include "mneme/memory/schema.h"
#include "mneme/memory/sqlite.h"

#include <cerrno>
#include <charconv>
#include <cstring>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <system_error>
#include <thread>
#include <unistd.h>
#include <utility>

namespace mneme {

using memory::Database;
using memory::Transaction;

namespace {

constexpr std::string_view kBudgetKey = "budget_bytes";
constexpr std::size_t kMaxMetaBytes = std::size_t{16} << 20;
// WAL pages after which SQLite writes them back by itself; larger batches are followed by a
// checkpoint of ours.
constexpr int kAutoCheckpointPages = 256;

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

bool has_content(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  return !error && size > 0;
}

}  // namespace

MemoryFile::MemoryFile(const std::filesystem::path& path, const Options& options)
    : path_(path),
      options_(options),
      policy_(options.policy ? options.policy : default_consolidation_policy()) {}

std::unique_ptr<MemoryFile> MemoryFile::open(const std::filesystem::path& path, Access access) {
  return open(path, access, Options{});
}

std::unique_ptr<MemoryFile> MemoryFile::open(const std::filesystem::path& path, Access access,
                                             const Options& options) {
  if (options.budget_bytes) check_budget(*options.budget_bytes);
  std::unique_ptr<MemoryFile> file(new MemoryFile(path, options));
  file->connect(access);
  return file;
}

void MemoryFile::connect(Access access) {
  const std::string where = path_.string() + ": ";
  std::error_code error;
  const auto status = std::filesystem::status(path_, error);
  if (std::filesystem::is_directory(status)) {
    throw Error(Errc::invalid, where + "is a folder where a memory file is meant");
  }
  const bool exists = std::filesystem::exists(status);
  if (!exists && status.type() != std::filesystem::file_type::not_found) {
    throw Error(Errc::io, where + "cannot be opened: " + error.message());
  }
  if (!exists && access != Access::create) {
    throw Error(Errc::not_found,
                where + "there is no such memory file; `mneme read PATH -o FILE` makes one");
  }
  if (!exists && !std::filesystem::is_directory(folder_of(path_), error)) {
    throw Error(Errc::io,
                where + "cannot be created: there is no folder " + folder_of(path_).string());
  }
  if (exists && !std::filesystem::is_regular_file(status)) {
    throw Error(Errc::invalid, where + "is not a regular file");
  }
  if (exists && access != Access::create && !has_content(path_)) {
    throw Error(Errc::corrupt,
                where + "is empty, not a memory file; `mneme read PATH -o FILE` makes one");
  }

  // Without a folder that can be written there is no journal, so the file cannot be written either.
  const bool folder_writable = ::access(folder_of(path_).c_str(), W_OK) == 0;
  if (!exists && !folder_writable) {
    throw Error(Errc::io, where + "cannot be created: its folder is read-only");
  }
  auto mode = Database::Mode::read_only;
  if (access != Access::read_only && folder_writable) {
    mode = access == Access::create ? Database::Mode::create : Database::Mode::read_write;
  }
  const auto prepare_connection = [&] {
    db_ = std::make_unique<Database>(path_, mode, options_.busy_timeout);
    writable_ =
        mode != Database::Mode::immutable && !db_->read_only() && access != Access::read_only;
    db_->execute("PRAGMA cell_size_check = ON");
    db_->execute("PRAGMA foreign_keys = ON");
    db_->execute("PRAGMA cache_size = -8192");
    db_->execute("PRAGMA wal_autocheckpoint = " + std::to_string(kAutoCheckpointPages));
    if (writable_ && access == Access::create && db_->integer("PRAGMA page_count") == 0) {
      memory::create_schema(*db_);
    }
    memory::check_schema(*db_);
  };
  try {
    prepare_connection();
  } catch (const memory::RecoveryNeeded&) {
    // A connection that may write rolls back by itself.
    if (access != Access::read_only || !folder_writable) throw;
    db_.reset();
    put_right();
    prepare_connection();
  } catch (const Error& failure) {
    // A file in WAL mode wants to make its -shm beside it. Where that cannot be, a file without
    // -wal is read as it is.
    if (failure.code() != Errc::io || folder_writable || !exists) throw;
    if (has_content(path_.string() + "-wal")) {
      throw Error(Errc::io, where +
                                "was not closed by its last writer and its folder is read-only; "
                                "copy it with its -wal to a folder that can be written");
    }
    mode = Database::Mode::immutable;
    prepare_connection();
  }

  if (meta("forgetting")) {
    if (writable_) {
      finish_forgetting();
    } else if (access == Access::read_only && folder_writable) {
      db_.reset();
      try {
        put_right();
      } catch (const Error&) {
        // It stays unfinished, and usage() and verify() say so.
      }
      prepare_connection();
    }
  }

  std::optional<std::int64_t> stored_budget;
  if (const auto text = meta(kBudgetKey)) {
    std::int64_t value = 0;
    const auto [end, failed] = std::from_chars(text->data(), text->data() + text->size(), value);
    if (failed == std::errc() && value >= kMinBudgetBytes) stored_budget = value;
  }
  budget_bytes_ = options_.budget_bytes.value_or(stored_budget.value_or(kDefaultBudgetBytes));
  if (writable_ && budget_bytes_ != stored_budget) {
    store_quietly([&] { set_meta(kBudgetKey, std::to_string(budget_bytes_)); });
  }
}

// Opens and closes the file once for writing, which puts right what an interrupted writer left and this
// connection, which only reads, may not touch. It must not be open here: whoever reads stands in the
// way.
void MemoryFile::put_right() const {
  Options writing;
  writing.busy_timeout = options_.busy_timeout;
  open(path_, Access::read_write, writing)->close();
}

MemoryFile::~MemoryFile() {
  try {
    close();
  } catch (const std::exception&) {
    // What is stored stays stored: the next one to open the file writes the -wal back.
  }
  db_.reset();
  if (writer_lock_ >= 0) {
    ::unlink((path_.string() + "-writer").c_str());
    ::close(writer_lock_);
  }
}

void MemoryFile::close() {
  if (!db_) return;
  if (writable_ && db_->text("PRAGMA journal_mode") == "wal") {
    checkpoint();
    // Refused while somebody else has the file open: then that one does it.
    db_->set_busy_timeout(std::chrono::milliseconds(0));
    try {
      db_->execute("PRAGMA journal_mode = DELETE");
    } catch (const Error& failure) {
      if (failure.code() != Errc::busy) throw;
    }
  }
  db_.reset();
}

void MemoryFile::claim_writer() {
  if (writer_lock_ >= 0) return;
  // The lock is not on the memory itself: closing any descriptor of a file drops SQLite's own locks
  // on it.
  const std::string name = path_.string() + "-writer";
  const auto deadline = std::chrono::steady_clock::now() + options_.busy_timeout;
  while (true) {
    const int lock = ::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (lock < 0) {
      throw Error(Errc::io,
                  path_.string() + ": cannot be written: " + name + ": " + std::strerror(errno));
    }
    if (::flock(lock, LOCK_EX | LOCK_NB) == 0) {
      // The one before may have removed the name between our open and our lock.
      struct stat ours{}, named{};
      if (::fstat(lock, &ours) == 0 && ::stat(name.c_str(), &named) == 0 &&
          ours.st_ino == named.st_ino && ours.st_dev == named.st_dev) {
        writer_lock_ = lock;
        return;
      }
      ::close(lock);
      continue;
    }
    ::close(lock);
    if (std::chrono::steady_clock::now() >= deadline) {
      throw Error(Errc::busy,
                  path_.string() +
                      ": another process is reading into this memory; try again when it is done");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

sqlite3* MemoryFile::handle() const { return db_->handle(); }

void MemoryFile::begin_writing(bool durable) {
  if (!writable_) {
    throw Error(Errc::io,
                path_.string() + ": cannot be written: the file or its folder is read-only");
  }
  bool wal = db_->text("PRAGMA journal_mode") == "wal";
  if (!wal) {
    // Refused while somebody reads just now or where the file system has no shared memory: then by
    // a rollback journal.
    try {
      wal = db_->text("PRAGMA journal_mode = WAL") == "wal";
    } catch (const Error& failure) {
      if (failure.code() != Errc::busy && failure.code() != Errc::io) throw;
    }
  }
  // A rollback journal is safe only with full synchronisation.
  db_->execute(durable || !wal ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL");
  // What a state leaves in free pages cannot be read as text, and zeroing it would double the
  // writing.
  db_->execute(durable ? "PRAGMA secure_delete = ON" : "PRAGMA secure_delete = FAST");
}

bool MemoryFile::checkpoint(bool wait) const {
  if (!wait) db_->set_busy_timeout(std::chrono::milliseconds(0));
  bool complete = false;
  try {
    auto row = db_->prepare("PRAGMA wal_checkpoint(TRUNCATE)");
    complete = row.step() && row.integer(0) == 0;
  } catch (const Error&) {
    // The pages stay in the -wal, from where they are read: nothing is lost.
  }
  db_->set_busy_timeout(options_.busy_timeout);
  return complete;
}

bool MemoryFile::store_quietly(const std::function<void()>& write) {
  try {
    write();
    return true;
  } catch (const Error& failure) {
    if (failure.code() != Errc::busy && failure.code() != Errc::io) throw;
    return false;
  }
}

std::int64_t MemoryFile::generation() const { return counter("generation"); }

std::optional<std::string> MemoryFile::meta(std::string_view key) const {
  auto row = db_->prepare("SELECT value FROM meta WHERE key = ?");
  if (!row.bind(key).step()) return std::nullopt;
  return std::string(row.text(0));
}

void MemoryFile::write_meta(std::string_view key, std::string_view value) {
  if (key.empty() || key.size() > 256 || value.size() > kMaxMetaBytes) {
    throw Error(Errc::invalid,
                path_.string() +
                    ": a meta entry needs a key of 1 to 256 bytes and a value of at most " +
                    std::to_string(kMaxMetaBytes) + " bytes");
  }
  db_->prepare("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)")
      .bind(key, memory::bytes_of(value))
      .run();
}

void MemoryFile::set_meta(std::string_view key, std::string_view value) {
  begin_writing(true);
  Transaction transaction(*db_, Transaction::Kind::write);
  write_meta(key, value);
  transaction.commit();
}

void MemoryFile::set_meta(std::span<const std::pair<std::string, std::string>> entries) {
  begin_writing(true);
  Transaction transaction(*db_, Transaction::Kind::write);
  for (const auto& [key, value] : entries) write_meta(key, value);
  transaction.commit();
}

std::int64_t MemoryFile::counter(std::string_view key) const {
  auto row = db_->prepare("SELECT value FROM counters WHERE key = ?");
  return row.bind(key).step() ? row.integer(0) : 0;
}

void MemoryFile::raise_counter(std::string_view key, std::int64_t amount) {
  db_->prepare(
         "INSERT INTO counters (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = "
         "value + excluded.value")
      .bind(key, amount)
      .run();
}

bool MemoryFile::add_counter(std::string_view key, std::int64_t amount) {
  return store_quietly([&] {
    begin_writing(false);
    Transaction transaction(*db_, Transaction::Kind::write);
    raise_counter(key, amount);
    transaction.commit();
  });
}

}  // namespace mneme
