// A small FTS5 table in memory, as the memory file has one.
#pragma once

#include <gtest/gtest.h>
#include <sqlite3.h>
#include <string>
#include <vector>

namespace mneme {

class MemoryTable {
 public:
  /// Spans get the ids 1, 2, ...
  explicit MemoryTable(const std::vector<std::string>& spans = {}) {
    EXPECT_EQ(sqlite3_open(":memory:", &db_), SQLITE_OK);
    run("CREATE VIRTUAL TABLE words USING fts5(text, tokenize = 'porter unicode61')");
    std::int64_t id = 0;
    for (const auto& span : spans) add(++id, span);
  }
  MemoryTable(const MemoryTable&) = delete;
  MemoryTable& operator=(const MemoryTable&) = delete;
  ~MemoryTable() { sqlite3_close(db_); }

  void run(const std::string& sql) {
    ASSERT_EQ(sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK)
        << sqlite3_errmsg(db_);
  }
  void add(std::int64_t id, const std::string& text) {
    sqlite3_stmt* s = nullptr;
    ASSERT_EQ(
        sqlite3_prepare_v2(db_, "INSERT INTO words(rowid, text) VALUES (?1, ?2)", -1, &s, nullptr),
        SQLITE_OK);
    sqlite3_bind_int64(s, 1, id);
    sqlite3_bind_text(s, 2, text.data(), static_cast<int>(text.size()), SQLITE_TRANSIENT);
    ASSERT_EQ(sqlite3_step(s), SQLITE_DONE);
    sqlite3_finalize(s);
  }
  [[nodiscard]] sqlite3* db() const { return db_; }

 private:
  sqlite3* db_ = nullptr;
};

}  // namespace mneme
