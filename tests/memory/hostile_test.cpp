// Memory files that somebody made to do harm, or that a disk has damaged: one clear line, no crash,
// no flood of memory.
#include "mneme/memory/memory_file.h"

#include "memory_fixture.h"
#include <functional>
#include <sqlite3.h>
#include <sys/resource.h>
#include <zstd.h>

namespace mneme {
namespace {

using check::error_of;
using check::Folder;
using check::put_text;
using check::story;
using Access = MemoryFile::Access;

// A small file with something in every table.
void make_memory(const std::filesystem::path& path) {
  std::filesystem::remove(path);
  const auto file = MemoryFile::open(path, Access::create);
  const auto book = put_text(*file, "book", story(0, 12));
  const auto other = put_text(*file, "other", story(20, 3));
  auto joint = check::state_of(book.spans[2], 3000, 2);
  joint.provenance = {book.document, other.document};
  file->put(std::vector{check::state_of(book.spans[1], 30'000), joint,
                        check::embedding_of(book.spans[3])},
            Admission::ahead);
  file->append_turn("default", {0, "assistant", "An answer.", {1, 2}, {book.document}, 0});
  file->put_index({"dense", "flat", "embedder", file->generation(), 0}, check::noise(2000, 3));
  file->set_meta("model", "m");
}

void tamper(const std::filesystem::path& path, const std::string& sql, std::string_view blob = {}) {
  sqlite3* handle = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &handle), SQLITE_OK);
  sqlite3_stmt* statement = nullptr;
  ASSERT_EQ(sqlite3_prepare_v2(handle, sql.c_str(), -1, &statement, nullptr), SQLITE_OK)
      << sqlite3_errmsg(handle);
  if (sqlite3_bind_parameter_count(statement) > 0) {
    sqlite3_bind_blob(statement, 1, blob.data(), static_cast<int>(blob.size()), SQLITE_STATIC);
  }
  EXPECT_EQ(sqlite3_step(statement), SQLITE_DONE) << sqlite3_errmsg(handle);
  sqlite3_finalize(statement);
  sqlite3_close(handle);
}

// Uses everything that reads; what it meets may be an Error, nothing else.
int use(const std::filesystem::path& path, Access access) {
  int errors = 0;
  const auto attempt = [&](const std::function<void()>& body) {
    try {
      body();
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      ++errors;
    }
  };
  attempt([&] {
    const auto file = MemoryFile::open(path, access);
    std::vector<std::int64_t> documents{1, 2, 99}, spans{1, 2, 3, 4, 99};
    attempt([&] {
      for (const auto& info : file->documents()) documents.push_back(info.document.id);
    });
    for (const auto document : documents) {
      attempt([&] { (void)file->document_text(document); });
      attempt([&] {
        for (const auto& s : file->spans(document)) spans.push_back(s.id);
      });
    }
    for (const auto span : spans) {
      attempt([&] { (void)file->span_text(span); });
      attempt([&] { (void)file->reps(span); });
      attempt([&] { (void)file->get(check::state_of(span, 0).key); });
    }
    attempt([&] { file->for_each_passage([](const Span&) {}); });
    attempt([&] { file->for_each_rep(RepKind::embedding, "embedder", [](const Rep&) {}); });
    attempt([&] { (void)file->usage(); });
    attempt([&] { (void)file->turns("default"); });
    attempt([&] { (void)file->get_index("dense"); });
    attempt([&] { (void)file->meta("model"); });
    attempt([&] {
      if (!file->verify().ok()) ++errors;
    });
    sqlite3_stmt* statement = nullptr;
    if (sqlite3_prepare_v2(
            file->handle(),
            "SELECT rowid, bm25(spans_fts) FROM spans_fts WHERE spans_fts MATCH 'keeper OR quay'",
            -1, &statement, nullptr) == SQLITE_OK) {
      while (sqlite3_step(statement) == SQLITE_ROW) {
      }
    }
    sqlite3_finalize(statement);
    if (access == Access::read_only) return;
    attempt([&] { put_text(*file, "new", story(40, 3)); });
    attempt([&] { put_text(*file, "book", story(41, 3)); });
    attempt([&] { file->append_turn("default", {0, "user", "Hello", {}, {}, 0}); });
    attempt([&] { file->touch(spans); });
    attempt([&] {
      const auto state = check::state_of(3, 5000, 9);
      file->put({&state, 1}, Admission::for_question);
    });
    attempt([&] { file->forget("other"); });
  });
  return errors;
}

TEST(Hostile, RowsThatLieAreErrorsAndFindings) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  std::string packed(ZSTD_compressBound(64 << 20), '\0');
  {
    const std::string zeros(64 << 20, 'a');
    packed.resize(ZSTD_compress(packed.data(), packed.size(), zeros.data(), zeros.size(), 19));
    ASSERT_LT(packed.size(), 100'000u);
  }
  const struct {
    std::string sql;
    std::string_view blob;
  } lies[] = {
      {"UPDATE documents SET bytes = 1 << 62 WHERE id = 1", {}},
      {"UPDATE documents SET bytes = -5 WHERE id = 1", {}},
      {"UPDATE documents SET bytes = 1000000000 WHERE id = 1", {}},
      {"UPDATE documents SET bytes = bytes - 1 WHERE id = 1", {}},
      {"UPDATE documents SET content_hash = replace(content_hash, substr(content_hash, 1, 1), 'x') "
       "WHERE id = 1",
       {}},
      {"UPDATE texts SET bytes = 1 << 40 WHERE document_id = 1", {}},
      {"UPDATE texts SET zstd = ? WHERE document_id = 1", packed},
      {"UPDATE texts SET zstd = ? WHERE document_id = 1", "not zstd"},
      {"DELETE FROM texts WHERE document_id = 1", {}},
      {"UPDATE spans SET end = 1 << 50 WHERE id = 3", {}},
      {"UPDATE spans SET end = -1 WHERE id = 3", {}},
      {"UPDATE spans SET begin = end + 1 WHERE id = 3", {}},
      {"UPDATE spans SET parent = 1000000 WHERE id = 3", {}},
      {"UPDATE spans SET document_id = 2, ordinal = 77 WHERE id = 3", {}},
      {"UPDATE reps SET bytes = 1 << 60 WHERE id = 1", {}},
      {"UPDATE reps SET bytes = -1 WHERE id = 1", {}},
      {"UPDATE reps SET kind = 'nonsense' WHERE id = 1", {}},
      {"UPDATE reps SET blob = ? WHERE id = 1", "short"},
      {"UPDATE reps SET provenance = ',1,999,' WHERE id = 1", {}},
      {"UPDATE reps SET provenance = ',,x,99999999999999999999999,' WHERE id = 1", {}},
      {"DELETE FROM state_parts WHERE rep_id = 1", {}},
      {"UPDATE state_parts SET part = 5000000000 WHERE rep_id = 1", {}},
      {"UPDATE turns SET number = -3", {}},
      {"UPDATE documents SET session_id = 1, first_turn = 1, last_turn = 0x7fffffffffffffff", {}},
      {"UPDATE documents SET session_id = 1, first_turn = 5, last_turn = -5", {}},
      {"UPDATE documents SET last_turn = 7", {}},
      {"INSERT INTO meta (key, value) VALUES ('forgetting', x'ff')", {}},
      {"UPDATE turns SET provenance = ',12345,'", {}},
      {"UPDATE indexes SET bytes = 1 << 60", {}},
      {"UPDATE counters SET value = 1 << 60 WHERE key = 'state_pages'", {}},
      {"DELETE FROM spans_fts_docsize WHERE id = 3", {}},
  };
  make_memory(path);
  const int always = use(path, Access::read_only);  // asking for numbers that are not there
  for (const auto& lie : lies) {
    make_memory(path);
    tamper(path, lie.sql, lie.blob);
    const bool harmless = lie.sql.find("'forgetting'") != std::string::npos ||
                          lie.sql.find("part = 5000000000") != std::string::npos ||
                          lie.sql.find("number = -3") != std::string::npos;
    const int errors = use(path, Access::read_only);
    if (!harmless) {
      EXPECT_GT(errors, always) << lie.sql;
    }
    use(path, Access::read_write);
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  EXPECT_LT(usage.ru_maxrss, 1'500'000) << "no length that a file claims was allocated";
}

TEST(Hostile, LabelsAreNeverOpened) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  check::write_file(folder / "private.txt", "A private text.");
  {
    const auto file = MemoryFile::open(path, Access::create);
    put_text(*file, (folder / "private.txt").string(), "What the label says is not what is in it.");
    put_text(*file, "../../../../etc/passwd", "Nothing of the system.");
  }
  const auto file = MemoryFile::open(path, Access::read_write);
  EXPECT_EQ(file->document_text(1), "What the label says is not what is in it.");
  EXPECT_EQ(file->document_text(2), "Nothing of the system.");
  EXPECT_TRUE(file->verify().ok());
}

TEST(Hostile, ATruncatedFileIsOneLine) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  make_memory(path);
  const auto whole = check::file_bytes(path);
  for (const std::size_t size : {std::size_t{1}, std::size_t{50}, std::size_t{99}, std::size_t{100},
                                 std::size_t{4096}, std::size_t{8192}, std::size_t{16384},
                                 whole.size() / 2, whole.size() - 8192, whole.size() - 1}) {
    check::write_file(path, whole.substr(0, size));
    EXPECT_GT(use(path, Access::read_only), 0) << size;
    check::write_file(path, whole.substr(0, size));
    EXPECT_GT(use(path, Access::read_write), 0) << size;
  }
}

TEST(Hostile, RandomDamageNeverCrashes) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  make_memory(path);
  const auto whole = check::file_bytes(path);
  std::mt19937_64 generator(99);
  for (int round = 0; round < 150; ++round) {
    auto bytes = whole;
    const auto changes = 1 + generator() % 12;
    for (std::uint64_t i = 0; i < changes; ++i) {
      // Headers of pages and cells are where structure is.
      const auto page = generator() % (bytes.size() / 8192);
      const auto at = page * 8192 + (generator() % 2 == 0 ? generator() % 64 : generator() % 8192);
      if (at >= 40 && at < 100 && generator() % 4 != 0) continue;
      bytes[at] = generator() % 3 == 0 ? static_cast<char>(0xff) : static_cast<char>(generator());
    }
    for (const char* rest : {"-wal", "-shm", "-journal"})
      std::filesystem::remove(path.string() + rest);
    check::write_file(path, bytes);
    use(path, round % 2 == 0 ? Access::read_only : Access::read_write);
  }
}

}  // namespace
}  // namespace mneme
