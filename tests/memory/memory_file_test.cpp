// The memory file: opening, documents, representations, sessions, indexes, copies.
#include "mneme/memory/memory_file.h"

#include "memory_fixture.h"
#include <csignal>
#include <cstring>
#include <sched.h>
#include <set>
#include <sqlite3.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace mneme {
namespace {

using check::as_ordinary_user;
using check::error_of;
using check::expect_sound;
using check::Folder;
using check::put_text;
using check::story;
using Access = MemoryFile::Access;

std::int64_t header_integer(const std::string& bytes, std::size_t at) {
  std::int64_t value = 0;
  for (std::size_t i = 0; i < 4; ++i)
    value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  return value;
}

std::vector<std::int64_t> search_words(const MemoryFile& file, const std::string& query) {
  sqlite3_stmt* statement = nullptr;
  EXPECT_EQ(sqlite3_prepare_v2(file.handle(),
                               "SELECT rowid FROM spans_fts WHERE spans_fts MATCH ? ORDER BY rank",
                               -1, &statement, nullptr),
            SQLITE_OK);
  sqlite3_bind_text(statement, 1, query.c_str(), -1, SQLITE_TRANSIENT);
  std::vector<std::int64_t> found;
  while (sqlite3_step(statement) == SQLITE_ROW) found.push_back(sqlite3_column_int64(statement, 0));
  sqlite3_finalize(statement);
  return found;
}

TEST(MemoryFile, ANewFileCarriesItsMarkAndIsOneFileWhenClosed) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  {
    const auto file = MemoryFile::open(path, Access::create);
    EXPECT_TRUE(file->writable());
    put_text(*file, "book", story(0, 5));
    EXPECT_GT(folder.files().size(), 1u) << "WAL while in use";
  }
  EXPECT_EQ(folder.files(), std::vector<std::string>{"a.mneme"});
  const auto bytes = check::file_bytes(path);
  EXPECT_EQ(bytes.substr(0, 15), "SQLite format 3");
  EXPECT_EQ(header_integer(bytes, 68), 0x4D4E454D);
  EXPECT_EQ(header_integer(bytes, 60), 1);
  EXPECT_EQ(bytes[18], 1) << "a rollback journal again";
  EXPECT_EQ(MemoryFile::open(path, Access::read_only)->documents().size(), 1u);
  EXPECT_EQ(folder.files(), std::vector<std::string>{"a.mneme"});
}

TEST(MemoryFile, RefusesWhatIsNoMemory) {
  const Folder folder;
  const auto refused = [&](const char* name, Access access = Access::read_write) {
    std::string message;
    const auto code = error_of([&] { MemoryFile::open(folder / name, access); }, &message);
    EXPECT_NE(message.find(name), std::string::npos) << message;
    return code;
  };
  EXPECT_EQ(refused("missing.mneme"), Errc::not_found);
  EXPECT_EQ(refused("no/folder.mneme", Access::create), Errc::io);
  std::filesystem::create_directory(folder / "dir.mneme");
  EXPECT_EQ(refused("dir.mneme"), Errc::invalid);
  check::write_file(folder / "empty.mneme", "");
  EXPECT_EQ(refused("empty.mneme"), Errc::corrupt);
  check::write_file(folder / "text.mneme", story(0, 200));
  EXPECT_EQ(refused("text.mneme"), Errc::corrupt);
  EXPECT_EQ(refused("text.mneme", Access::create), Errc::corrupt);
  check::write_file(folder / "noise.mneme", check::noise(100000, 5));
  EXPECT_EQ(refused("noise.mneme"), Errc::corrupt);

  sqlite3* other = nullptr;
  ASSERT_EQ(sqlite3_open((folder / "other.mneme").c_str(), &other), SQLITE_OK);
  sqlite3_exec(other, "CREATE TABLE t (x); INSERT INTO t VALUES (1)", nullptr, nullptr, nullptr);
  sqlite3_close(other);
  EXPECT_EQ(refused("other.mneme"), Errc::corrupt);
  EXPECT_EQ(refused("other.mneme", Access::create), Errc::corrupt);
}

TEST(MemoryFile, AnEmptyFileBecomesNew) {
  const Folder folder;
  check::write_file(folder / "a.mneme", "");
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create);
  put_text(*file, "book", story(0, 3));
  expect_sound(*file);
}

// Changes a closed file behind the library's back.
void tamper(const std::filesystem::path& path, const char* sql) {
  sqlite3* handle = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &handle), SQLITE_OK);
  char* message = nullptr;
  EXPECT_EQ(sqlite3_exec(handle, sql, nullptr, nullptr, &message), SQLITE_OK) << message;
  sqlite3_close(handle);
}

TEST(MemoryFile, RefusesANewerFormatAndAForeignSchema) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  const auto fresh = [&] {
    std::filesystem::remove(path);
    put_text(*MemoryFile::open(path, Access::create), "book", story(0, 3));
  };
  std::string message;
  fresh();
  tamper(path, "PRAGMA user_version = 2");
  EXPECT_EQ(error_of([&] { MemoryFile::open(path, Access::read_only); }, &message), Errc::mismatch);
  EXPECT_NE(message.find("format 2"), std::string::npos) << message;
  EXPECT_EQ(error_of([&] { MemoryFile::upgrade(path); }), Errc::mismatch);
  for (const char* change :
       {"CREATE TABLE extra (x)", "CREATE VIEW v AS SELECT * FROM meta",
        "CREATE INDEX i ON spans (begin)",
        "CREATE TRIGGER t AFTER INSERT ON turns BEGIN DELETE FROM turns; END",
        "ALTER TABLE meta ADD COLUMN more TEXT", "DROP INDEX reps_by_kind",
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, "
        "'tokenize=''porter', 'tokenize=''ascii') WHERE name = 'spans_fts'"}) {
    fresh();
    tamper(path, change);
    EXPECT_EQ(error_of([&] { MemoryFile::open(path, Access::read_write); }), Errc::corrupt)
        << change;
  }
  fresh();
  EXPECT_EQ(MemoryFile::upgrade(path), 1);
}

TEST(MemoryFile, KeepsMetaAndCounters) {
  const Folder folder;
  {
    const auto file = MemoryFile::open(folder / "a.mneme", Access::create);
    file->set_meta("model", "abc");
    file->set_meta("prompt", std::string("line\n\0end", 9));
    EXPECT_TRUE(file->add_counter("asks", 2));
    EXPECT_TRUE(file->add_counter("asks", 3));
    EXPECT_EQ(error_of([&] { file->set_meta("", "x"); }), Errc::invalid);
    EXPECT_EQ(error_of([&] { file->set_meta("big", std::string((16 << 20) + 1, 'x')); }),
              Errc::invalid);
  }
  const auto file = MemoryFile::open(folder / "a.mneme", Access::read_only);
  EXPECT_EQ(file->meta("model"), "abc");
  EXPECT_EQ(file->meta("prompt"), std::string("line\n\0end", 9));
  EXPECT_EQ(file->meta("none"), std::nullopt);
  EXPECT_EQ(file->counter("asks"), 5);
  EXPECT_EQ(file->counter("none"), 0);
  EXPECT_FALSE(file->add_counter("asks", 1));
  EXPECT_EQ(error_of([&] { file->set_meta("model", "x"); }), Errc::io);
}

TEST(Documents, TextComesBackByteForByteAndByRange) {
  const Folder folder;
  // Longer than two parts, with characters of several bytes at the parts' borders.
  std::string text;
  while (text.size() < 700'000) text += "Γλῶσσα 语言 language 🙂 line\r\n\n\n";
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create);
  const auto result = put_text(*file, "long", text);
  EXPECT_EQ(result.outcome, PutResult::Outcome::added);
  EXPECT_EQ(file->document_text(result.document), text);
  std::mt19937_64 generator(3);
  for (int i = 0; i < 200; ++i) {
    auto begin = static_cast<std::int64_t>(generator() % (text.size() + 1));
    auto end = static_cast<std::int64_t>(generator() % (text.size() + 1));
    if (begin > end) std::swap(begin, end);
    ASSERT_EQ(file->document_text(result.document, begin, end), text.substr(begin, end - begin));
  }
  const auto size = static_cast<std::int64_t>(text.size());
  EXPECT_EQ(error_of([&] { (void)file->document_text(result.document, 0, size + 1); }),
            Errc::invalid);
  EXPECT_EQ(error_of([&] { (void)file->document_text(result.document, -1, 3); }), Errc::invalid);
  EXPECT_EQ(error_of([&] { (void)file->document_text(99); }), Errc::not_found);

  const auto spans = file->spans(result.document);
  const auto expected = check::paragraphs(text);
  ASSERT_EQ(spans.size(), expected.size());
  for (std::size_t i = 0; i < spans.size(); ++i) {
    EXPECT_EQ(spans[i].id, result.spans[i]);
    EXPECT_EQ(spans[i].begin, expected[i].begin);
    EXPECT_EQ(spans[i].end, expected[i].end);
    EXPECT_EQ(spans[i].parent, expected[i].parent);
    EXPECT_EQ(spans[i].order, expected[i].order);
    EXPECT_EQ(spans[i].tokens, expected[i].tokens);
    EXPECT_EQ(spans[i].kind, expected[i].kind);
  }
  EXPECT_EQ(file->span_text(spans[5].id),
            text.substr(spans[5].begin, spans[5].end - spans[5].begin));
  EXPECT_EQ(error_of([&] { (void)file->span_text(1 << 20); }), Errc::not_found);
  expect_sound(*file);
}

TEST(Documents, TheSameContentIsANoOpAndOtherContentReplaces) {
  const Folder folder;
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create);
  const auto first = put_text(*file, "book", "The zebra sleeps.\n\nThe heron wakes.");
  const auto other = put_text(*file, "other", "Nothing of note.");
  ASSERT_EQ(file->put(std::vector{check::state_of(first.spans[1], 50'000),
                                  check::state_of(first.spans[2], 60'000)},
                      Admission::ahead)
                .stored,
            2);
  auto foreign = check::state_of(other.spans[1], 40'000);
  foreign.provenance = {first.document, other.document};
  auto own = check::state_of(other.spans[1], 40'000);
  own.key.prefix_digest = "another";
  own.provenance = {other.document};
  ASSERT_EQ(file->put(std::vector{foreign, own}, Admission::ahead).stored, 2);
  file->put_index({"dense", "flat", "embedder", file->generation(), 0}, check::noise(3 << 20, 4));
  EXPECT_EQ(search_words(*file, "zebra"), std::vector{first.spans[1]});

  const auto generation = file->generation();
  const auto again = put_text(*file, "book", "The zebra sleeps.\n\nThe heron wakes.");
  EXPECT_EQ(again.outcome, PutResult::Outcome::unchanged);
  EXPECT_EQ(again.document, first.document);
  EXPECT_EQ(again.spans, first.spans);
  EXPECT_EQ(file->generation(), generation);
  EXPECT_EQ(file->find_index("dense")->bytes, 3 << 20);
  EXPECT_EQ(file->get_index("dense"), check::noise(3 << 20, 4));

  const auto replaced = put_text(*file, "book", "The otter swims.");
  EXPECT_EQ(replaced.outcome, PutResult::Outcome::replaced);
  EXPECT_EQ(replaced.document, first.document);
  EXPECT_GT(file->generation(), generation);
  EXPECT_EQ(file->find_document("book")->document.version, 2);
  EXPECT_TRUE(search_words(*file, "zebra").empty());
  EXPECT_EQ(search_words(*file, "otter"), std::vector{replaced.spans[1]});
  EXPECT_FALSE(file->find_span(first.spans[1]));
  EXPECT_FALSE(file->has(foreign.key)) << "it was made with the old text in its context";
  EXPECT_TRUE(file->has(own.key));
  EXPECT_FALSE(file->find_index("dense"));
  EXPECT_EQ(file->usage().spans_with_states, 1);
  expect_sound(*file);
}

TEST(Documents, AreListedWithTheirNumbers) {
  const Folder folder;
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create);
  const auto book = put_text(*file, "book", story(0, 4));
  put_text(*file, "chat/1", "A turn that fell out of the context.", {"chat", {book.document}});
  file->put(std::vector{check::state_of(book.spans[2], 10'000)}, Admission::ahead);
  const auto all = file->documents();
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].document.label, "book");
  EXPECT_EQ(all[0].bytes, static_cast<std::int64_t>(story(0, 4).size()));
  EXPECT_EQ(all[0].spans, 4);
  std::int64_t tokens = 0;
  for (const auto& s : file->spans(book.document)) tokens += s.kind == "passage" ? s.tokens : 0;
  EXPECT_EQ(all[0].tokens, tokens);
  EXPECT_EQ(all[0].with_states, 1);
  EXPECT_EQ(all[0].session, "");
  EXPECT_GT(all[0].document.created_at_s, 1'600'000'000);
  EXPECT_EQ(all[1].session, "chat");
  EXPECT_EQ(all[1].provenance, std::vector{book.document});
  std::size_t sources = 0, passages = 0;
  file->for_each_passage([&](const Span&) { ++sources; }, false);
  file->for_each_passage([&](const Span&) { ++passages; });
  EXPECT_EQ(sources, 4u);
  EXPECT_EQ(passages, 5u);
}

TEST(Documents, RefuseSpansThatDoNotFit) {
  const Folder folder;
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create);
  const auto document = document_from_text("book", "Grüße aus Köln.\n\nEnde.");
  const auto good = check::paragraphs(document.text);
  const auto refused = [&](const auto& change) {
    auto spans = good;
    change(spans);
    EXPECT_EQ(error_of([&] { file->put_document(document, spans); }), Errc::invalid);
    EXPECT_TRUE(file->documents().empty());
  };
  refused([](auto& s) { s[1].end = 1000; });
  refused([](auto& s) { s[1].begin = -1; });
  refused([](auto& s) { s[1].begin = s[1].end + 1; });
  refused([](auto& s) { s[1].end = 3; });  // inside the ü
  refused([](auto& s) { s[1].parent = 1; });
  refused([](auto& s) { s[0].end = 5; });
  refused([](auto& s) { s[2].order = 7; });
  refused([](auto& s) { s[2].kind = ""; });
  std::vector<Rep> reps{check::state_of(0, 10)};
  EXPECT_EQ(error_of([&] { file->put_document(document, good, reps); }), Errc::invalid);
  reps = {check::embedding_of(99)};
  EXPECT_EQ(error_of([&] { file->put_document(document, good, reps); }), Errc::invalid);
  auto bad_label = document;
  bad_label.label = "a\nb";
  EXPECT_EQ(error_of([&] { file->put_document(bad_label, good); }), Errc::usage);
}

TEST(Reps, AreFoundByTheirWholeKeyOnly) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  Rep rep;
  {
    const auto file = MemoryFile::open(path, Access::create);
    const auto book = put_text(*file, "book", story(0, 3));
    rep = check::state_of(book.spans[1], 3'000'001);
    rep.provenance = {book.document};
    const auto report = file->put({&rep, 1}, Admission::for_question);
    EXPECT_EQ(report.stored, 1);
    EXPECT_EQ(report.obstacle, StoreReport::Obstacle::none);
  }
  const auto file = MemoryFile::open(path, Access::read_only);
  const auto found = file->get(rep.key);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->blob, rep.blob);
  EXPECT_EQ(found->n_vec, rep.n_vec);
  EXPECT_EQ(found->d, rep.d);
  EXPECT_EQ(found->bytes, 3'000'001);
  EXPECT_GT(found->written_at_s, 1'600'000'000);
  EXPECT_TRUE(file->has(rep.key));
  const auto missed = [&](const auto& change) {
    auto key = rep.key;
    change(key);
    EXPECT_FALSE(file->get(key));
    EXPECT_FALSE(file->has(key));
    return file->get_any_codec(key).has_value();
  };
  EXPECT_FALSE(missed([](RepKey& k) { ++k.span; }));
  EXPECT_FALSE(missed([](RepKey& k) { k.kind = RepKind::state; }));
  EXPECT_FALSE(missed([](RepKey& k) { k.model_digest = "another"; }));
  EXPECT_FALSE(missed([](RepKey& k) { k.layer = 0; }));
  EXPECT_FALSE(missed([](RepKey& k) { k.prefix_digest = ""; }));
  EXPECT_TRUE(missed([](RepKey& k) { k.codec = "int4"; }));
  EXPECT_EQ(file->damaged_reps(), 0);
}

TEST(Reps, AreReplacedCountedAndListed) {
  const Folder folder;
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create);
  const auto book = put_text(*file, "book", story(0, 40));
  std::vector<Rep> embeddings;
  for (std::size_t i = 1; i < book.spans.size(); ++i)
    embeddings.push_back(check::embedding_of(book.spans[i], i));
  const auto generation = file->generation();
  EXPECT_EQ(file->put(embeddings, Admission::ahead).stored, 40);
  EXPECT_GT(file->generation(), generation);
  std::size_t at = 0;
  file->for_each_rep(RepKind::embedding, "embedder", [&](const Rep& rep) {
    ASSERT_LT(at, embeddings.size());
    EXPECT_EQ(rep.key.span, embeddings[at].key.span);
    EXPECT_EQ(rep.blob, embeddings[at].blob);
    ++at;
  });
  EXPECT_EQ(at, 40u);

  const auto span = book.spans[3];
  auto state = check::state_of(span, 100'000, 1);
  file->put({&state, 1}, Admission::ahead);
  const std::vector<std::int64_t> placed{span};
  EXPECT_TRUE(file->touch(placed));
  EXPECT_TRUE(file->touch(placed));
  state.blob = check::noise(80'000, 2);
  file->put({&state, 1}, Admission::ahead);
  EXPECT_EQ(file->get(state.key)->blob, state.blob);
  EXPECT_EQ(file->get(state.key)->uses, 2);
  const auto listed = file->reps(span);
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(listed[0].key.kind, RepKind::embedding);
  EXPECT_EQ(listed[1].bytes, 80'000);
  EXPECT_EQ(file->usage().state_bytes, 80'000);
  expect_sound(*file);

  auto gone = check::state_of(1 << 20, 10);
  auto report = file->put({&gone, 1}, Admission::ahead);
  EXPECT_EQ(report.obstacle, StoreReport::Obstacle::gone);
  gone = check::state_of(span, 10);
  gone.provenance = {77};
  EXPECT_EQ(file->put({&gone, 1}, Admission::ahead).not_stored, 1);
  file->drop_states();
  EXPECT_EQ(file->usage().state_bytes, 0);
  EXPECT_EQ(file->usage().spans_with_states, 0);
  EXPECT_EQ(file->reps(span).size(), 1u);
  expect_sound(*file);
}

TEST(Reps, ADamagedOneIsAMissAndReported) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  Rep state, embedding;
  {
    const auto file = MemoryFile::open(path, Access::create);
    const auto book = put_text(*file, "book", story(0, 3));
    state = check::state_of(book.spans[1], 200'000);
    embedding = check::embedding_of(book.spans[2]);
    ASSERT_EQ(file->put(std::vector{state, embedding}, Admission::ahead).stored, 2);
    file->put_index({"dense", "flat", "embedder", file->generation(), 0}, check::noise(5000, 77));
  }
  auto bytes = check::file_bytes(path);
  for (const auto& blob : {state.blob.substr(100'000, 40), embedding.blob.substr(100, 40),
                           check::noise(5000, 77).substr(100, 40)}) {
    const auto at = bytes.find(blob);
    ASSERT_NE(at, std::string::npos);
    bytes[at + 7] = static_cast<char>(bytes[at + 7] ^ 1);
  }
  check::write_file(path, bytes);
  const auto file = MemoryFile::open(path, Access::read_write);
  EXPECT_FALSE(file->get(state.key));
  EXPECT_FALSE(file->get(embedding.key));
  EXPECT_FALSE(file->get_index("dense"));
  EXPECT_EQ(file->damaged_reps(), 3);
  std::size_t seen = 0;
  file->for_each_rep(RepKind::embedding, "embedder", [&](const Rep&) { ++seen; });
  EXPECT_EQ(seen, 0u);
  EXPECT_EQ(file->verify().problems.size(), 3u);
  EXPECT_EQ(file->put({&state, 1}, Admission::ahead).stored, 1);
  EXPECT_EQ(file->get(state.key)->blob, state.blob);
  EXPECT_EQ(file->verify().problems.size(), 2u);
}

TEST(Sessions, KeepTurnsInOrder) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  {
    const auto file = MemoryFile::open(path, Access::create);
    const auto book = put_text(*file, "book", story(0, 3));
    const std::vector<Turn> turns{{0, "user", "How many ships?", {}, {}, 0},
                                  {0, "assistant", "31 ships.", {1, -2, 3}, {book.document}, 0}};
    EXPECT_EQ(file->append_turns("default", turns), 2);
    EXPECT_EQ(file->append_turn("default", {0, "user", "And then?", {}, {}, 0}), 3);
    EXPECT_EQ(file->append_turn("other", {0, "user", "Hello", {}, {}, 0}), 1);
    for (const auto& name : {std::string(), std::string(257, 'x'), std::string("\xff"),
                             std::string("a\nb"), std::string("a\0b", 3), std::string("\x7f")}) {
      EXPECT_EQ(error_of([&] { MemoryFile::check_session_name(name); }), Errc::invalid);
      EXPECT_EQ(error_of([&] { file->append_turn(name, {0, "user", "x", {}, {}, 0}); }),
                Errc::invalid);
    }
    MemoryFile::check_session_name(std::string(256, 'x'));
    EXPECT_EQ(error_of([&] { file->append_turn("default", {0, "", "x", {}, {}, 0}); }),
              Errc::invalid);
    EXPECT_EQ(error_of([&] { file->append_turn("default", {0, "user", "\xff", {}, {}, 0}); }),
              Errc::invalid);
    EXPECT_EQ(error_of([&] {
                file->append_turn("default", {0, "user", std::string("a\0b", 3), {}, {}, 0});
              }),
              Errc::invalid);
    EXPECT_EQ(error_of([&] { file->append_turn("default", {0, "user", "x", {}, {99}, 0}); }),
              Errc::not_found);
    EXPECT_EQ(error_of([&] {
                file->append_turn("default",
                                  {0, "user", std::string((16 << 20) + 1, 'x'), {}, {}, 0});
              }),
              Errc::full);
  }
  const auto file = MemoryFile::open(path, Access::read_write);
  const auto sessions = file->sessions();
  ASSERT_EQ(sessions.size(), 2u);
  EXPECT_EQ(sessions[0].name, "default");
  EXPECT_EQ(sessions[0].turns, 3);
  const auto turns = file->turns("default");
  ASSERT_EQ(turns.size(), 3u);
  EXPECT_EQ(turns[1].text, "31 ships.");
  EXPECT_EQ(turns[1].ids, (std::vector<std::int32_t>{1, -2, 3}));
  EXPECT_EQ(turns[1].provenance.size(), 1u);
  EXPECT_EQ(turns[2].number, 3);
  put_text(*file, "left by the chat", "Something that was said.", {"default", {}});
  const auto cleared = file->clear_session("default");
  EXPECT_EQ(cleared.turns, 3);
  EXPECT_EQ(cleared.labels, std::vector<std::string>{"left by the chat"});
  EXPECT_TRUE(cleared.cleaned);
  EXPECT_EQ(file->sessions().size(), 1u);
  EXPECT_EQ(file->documents().size(), 1u);
  EXPECT_EQ(error_of([&] { file->clear_session("default"); }), Errc::not_found);
  expect_sound(*file);
}

TEST(Writers, ASecondOneIsToldInOneLineAndAReaderIsNotDisturbed) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  MemoryFile::Options hasty;
  hasty.busy_timeout = std::chrono::milliseconds(100);
  const auto first = MemoryFile::open(path, Access::create, hasty);
  put_text(*first, "book", story(0, 3));
  first->claim_writer();
  first->claim_writer();
  const auto second = MemoryFile::open(path, Access::read_write, hasty);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(error_of([&] { second->claim_writer(); }), Errc::busy);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));

  // Somebody keeps the write lock.
  ASSERT_EQ(sqlite3_exec(first->handle(), "BEGIN IMMEDIATE", nullptr, nullptr, nullptr), SQLITE_OK);
  EXPECT_EQ(error_of([&] { put_text(*second, "more", story(5, 1)); }), Errc::busy);
  auto state = check::state_of(second->spans(1)[1].id, 1000);
  const auto report = second->put({&state, 1}, Admission::for_question);
  EXPECT_EQ(report.stored, 0);
  EXPECT_EQ(report.obstacle, StoreReport::Obstacle::busy);
  EXPECT_FALSE(second->touch(std::vector<std::int64_t>{2}));
  EXPECT_EQ(MemoryFile::open(path, Access::read_only)->documents().size(), 1u);
  ASSERT_EQ(sqlite3_exec(first->handle(), "ROLLBACK", nullptr, nullptr, nullptr), SQLITE_OK);
  put_text(*second, "more", story(5, 1));
  EXPECT_EQ(first->documents().size(), 2u);
}

TEST(Writers, SideBySideLoseNothing) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  {
    MemoryFile::open(path, Access::create);
  }
  MemoryFile::Options patient;
  patient.busy_timeout = std::chrono::seconds(30);
  std::vector<pid_t> children;
  for (int writer = 0; writer < 3; ++writer) {
    children.push_back(::fork());
    if (children.back() != 0) continue;
    try {
      for (int i = 0; i < 8; ++i) {
        // Opened and closed each time, so that the changes of the journal's mode meet too.
        const auto file = MemoryFile::open(path, Access::read_write, patient);
        file->append_turn("default", {0, "user", std::to_string(writer), {}, {}, 0});
        const auto name = std::to_string(writer) + "/" + std::to_string(i);
        const auto put = put_text(*file, name, story(100 * writer + i, 3));
        const auto state = check::state_of(put.spans[1], 50'000);
        if (file->put({&state, 1}, Admission::for_question).stored != 1) ::_exit(2);
      }
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      ::_exit(1);
    }
    ::_exit(0);
  }
  for (const auto child : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  EXPECT_EQ(folder.files(), std::vector<std::string>{"a.mneme"});
  const auto file = MemoryFile::open(path, Access::read_write);
  EXPECT_EQ(file->documents().size(), 24u);
  EXPECT_EQ(file->turns("default").size(), 24u);
  EXPECT_EQ(file->usage().spans_with_states, 24);
  expect_sound(*file);
}

TEST(Writers, TheClaimEndsWithItsProcess) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  MemoryFile::open(path, Access::create)->claim_writer();
  EXPECT_EQ(folder.files(), std::vector<std::string>{"a.mneme"});
  const pid_t child = ::fork();
  if (child == 0) {
    const auto file = MemoryFile::open(path, Access::read_write);
    file->claim_writer();
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  {
    const auto file = MemoryFile::open(path, Access::read_write);
    file->claim_writer();
  }
  EXPECT_EQ(folder.files(), std::vector<std::string>{"a.mneme"});
}

TEST(Writers, TheLastOneToCloseMakesItOneFile) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  auto first = MemoryFile::open(path, Access::create);
  put_text(*first, "one", story(0, 2));
  auto second = MemoryFile::open(path, Access::read_write);
  put_text(*second, "two", story(2, 2));
  first.reset();
  EXPECT_EQ(second->documents().size(), 2u);
  put_text(*second, "three", story(4, 2));
  second.reset();
  EXPECT_EQ(folder.files(), std::vector<std::string>{"a.mneme"});
  EXPECT_EQ(check::file_bytes(path)[18], 1);
  EXPECT_EQ(MemoryFile::open(path, Access::read_only)->documents().size(), 3u);
}

bool answers_without_storing(const std::filesystem::path& path) {
  const auto file = MemoryFile::open(path, Access::read_write);
  auto state = check::state_of(file->spans(1).at(1).id, 1000);
  const auto report = file->put({&state, 1}, Admission::for_question);
  bool refused = false;
  try {
    put_text(*file, "more", "text");
  } catch (const Error& error) {
    refused = error.code() == Errc::io;
  }
  return !file->writable() && file->documents().size() == 1 && file->span_text(2) == story(0, 1) &&
         report.stored == 0 && report.obstacle == StoreReport::Obstacle::read_only &&
         !file->touch(std::vector<std::int64_t>{2}) && refused && file->verify().ok();
}

TEST(ReadOnly, FilesAndFoldersAreReadAndNothingIsStored) {
  const Folder folder;
  namespace fs = std::filesystem;
  std::filesystem::create_directory(folder / "sub");
  const auto path = folder / "sub/a.mneme";
  put_text(*MemoryFile::open(path, Access::create), "book", story(0, 3));
  fs::permissions(folder.path(), fs::perms(0755));

  fs::permissions(path, fs::perms(0444));
  fs::permissions(folder / "sub", fs::perms(0777));
  EXPECT_TRUE(as_ordinary_user([&] { return answers_without_storing(path); }))
      << "a read-only file";
  fs::permissions(path, fs::perms(0666));
  fs::permissions(folder / "sub", fs::perms(0555));
  EXPECT_TRUE(as_ordinary_user([&] { return answers_without_storing(path); }))
      << "a read-only folder";

  // Closed while still in WAL mode, as after a crash of its writer, but with nothing in the -wal.
  tamper(path, "PRAGMA journal_mode = WAL");
  EXPECT_EQ(check::file_bytes(path)[18], 2);
  EXPECT_TRUE(as_ordinary_user([&] { return answers_without_storing(path); }))
      << "WAL mode in a read-only folder";
  EXPECT_TRUE(as_ordinary_user([&] {
    return error_of([&] { MemoryFile::open(folder / "sub/new.mneme", Access::create); }) ==
           Errc::io;
  }));

  // A writer that is still there: its -wal holds what counts.
  fs::permissions(folder / "sub", fs::perms(0777));
  const auto writer = MemoryFile::open(path, Access::read_write);
  writer->append_turn("default", {0, "user", "Are you there?", {}, {}, 0});
  for (const auto* name : {"sub/a.mneme-wal", "sub/a.mneme-shm"})
    fs::permissions(folder / name, fs::perms(0644));
  fs::permissions(path, fs::perms(0644));
  fs::permissions(folder / "sub", fs::perms(0555));
  EXPECT_TRUE(as_ordinary_user([&] {
    return answers_without_storing(path) &&
           MemoryFile::open(path, Access::read_only)->turns("default").size() == 1;
  })) << "in use, in a read-only folder";
  fs::permissions(folder / "sub", fs::perms(0777));
}

// A memory on a disk that has room for little more, tried in a child process: what `prepare` limits
// is limited there only. `prepare` gets a folder and gives the folder to work in, or "" where the
// system does not let it.
enum class DiskTrial { good, bad, impossible };
DiskTrial on_a_full_disk(const std::filesystem::path& folder,
                         const std::function<std::string(const std::string&)>& prepare) {
  const pid_t child = ::fork();
  if (child == 0) {
    bool good = true;
    const auto expect = [&](bool holds, const std::string& what) {
      if (!holds) std::fprintf(stderr, "%s\n", what.c_str());
      good = good && holds;
    };
    try {
      const std::string place = prepare(folder.string());
      if (place.empty()) ::_exit(2);
      const auto path = std::filesystem::path(place) / "a.mneme";
      auto file = MemoryFile::open(path, Access::create);
      put_text(*file, "book", story(0, 30));
      std::string message;
      std::string big = check::noise(6'000'000, 3);
      for (auto& c : big) c = static_cast<char>('a' + static_cast<unsigned char>(c) % 26);
      expect(error_of([&] { put_text(*file, "big", big); }, &message) == Errc::io,
             "another code: " + message);
      expect(message.find("disk is full") != std::string::npos, message);
      expect(message.find("what was stored before stays") != std::string::npos, message);
      std::vector<Rep> states{check::state_of(2, 3'000'000), check::state_of(3, 3'000'000)};
      const auto report = file->put(states, Admission::for_question);
      expect(report.stored == 0 && report.not_stored == 2, "states were stored");
      expect(report.obstacle == StoreReport::Obstacle::disk, "another obstacle: " + report.reason);
      expect(file->documents().size() == 1 && file->verify().ok(), "not sound");
      file->append_turn("default", {0, "user", "It still takes a turn.", {}, {}, 0});
      file.reset();
      file = MemoryFile::open(path, Access::read_write);
      expect(file->documents().size() == 1 && file->turns("default").size() == 1,
             "something is lost");
      expect(file->verify().ok(), "not sound when opened again");
    } catch (const std::exception& error) {
      expect(false, error.what());
    }
    ::_exit(good && !::testing::Test::HasFailure() ? 0 : 1);
  }
  int status = 0;
  if (::waitpid(child, &status, 0) != child || !WIFEXITED(status)) return DiskTrial::bad;
  return WEXITSTATUS(status) == 0   ? DiskTrial::good
         : WEXITSTATUS(status) == 2 ? DiskTrial::impossible
                                    : DiskTrial::bad;
}

TEST(FullDisk, IsOneLineAndNothingIsLost) {
  const Folder folder;
  const auto trial = on_a_full_disk(folder.path(), [](const std::string& place) -> std::string {
    const uid_t user = ::geteuid();
    if (::unshare(user == 0 ? CLONE_NEWNS : CLONE_NEWUSER | CLONE_NEWNS) != 0) return "";
    ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
    return ::mount("tmpfs", place.c_str(), "tmpfs", 0, "size=1500k") == 0 ? place : "";
  });
  if (trial == DiskTrial::impossible) GTEST_SKIP() << "no small disk can be mounted here";
  EXPECT_EQ(trial, DiskTrial::good);
}

TEST(FullDisk, ALimitOnFileSizesIsTheSame) {
  const Folder folder;
  const auto trial = on_a_full_disk(folder.path(), [](const std::string& place) -> std::string {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1'000'000, 1'000'000};
    return ::setrlimit(RLIMIT_FSIZE, &limit) == 0 ? place : "";
  });
  EXPECT_EQ(trial, DiskTrial::good);
}

TEST(FullDisk, AnExportNamesTheFileThatDoesNotFit) {
  const Folder folder;
  const auto path = folder / "a.mneme", to = folder / "copy.mneme";
  {
    const auto file = MemoryFile::open(path, Access::create);
    const auto state = check::state_of(put_text(*file, "book", story(0, 30)).spans[1], 2'000'000);
    ASSERT_EQ(file->put({&state, 1}, Admission::ahead).stored, 1);
  }
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1'000'000, 1'000'000};
    std::string message;
    const bool good = ::setrlimit(RLIMIT_FSIZE, &limit) == 0 &&
                      error_of([&] { MemoryFile::open(path, Access::read_only)->export_to(to); },
                               &message) == Errc::io &&
                      message.starts_with(to.string() + ": ") &&
                      message.find("disk is full") != std::string::npos;
    if (!good) std::fprintf(stderr, "%s\n", message.c_str());
    ::_exit(good ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_EQ(folder.files(), std::vector<std::string>{"a.mneme"});
}

TEST(Export, CopiesAMemoryInUse) {
  const Folder folder;
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create);
  const auto book = put_text(*file, "book", story(0, 30));
  auto state = check::state_of(book.spans[1], 500'000);
  file->put({&state, 1}, Admission::ahead);
  file->append_turn("default", {0, "user", "Hello", {}, {}, 0});
  file->export_to(folder / "copy.mneme");
  EXPECT_EQ(error_of([&] { file->export_to(folder / "copy.mneme"); }), Errc::invalid);
  EXPECT_EQ(error_of([&] { file->export_to(folder / "no/copy.mneme"); }), Errc::io);
  EXPECT_EQ(check::file_bytes(folder / "copy.mneme")[18], 1);
  const auto copy = MemoryFile::open(folder / "copy.mneme", Access::read_write);
  EXPECT_EQ(copy->documents().size(), 1u);
  EXPECT_EQ(copy->get(state.key)->blob, state.blob);
  EXPECT_EQ(copy->turns("default").size(), 1u);
  EXPECT_EQ(copy->usage().free_page_bytes, 0);
  EXPECT_EQ(search_words(*copy, "keeper").size(), 30u);
  expect_sound(*copy);
  for (const auto& name : folder.files())
    EXPECT_EQ(name.find("partial"), std::string::npos) << name;
}

TEST(Export, WorksFromAFileThatIsOnlyRead) {
  const Folder folder;
  {
    put_text(*MemoryFile::open(folder / "a.mneme", Access::create), "book", story(0, 30));
  }
  MemoryFile::open(folder / "a.mneme", Access::read_only)->export_to(folder / "copy.mneme");
  expect_sound(*MemoryFile::open(folder / "copy.mneme", Access::read_only));
}

TEST(Import, MergesWithNumbersTranslated) {
  const Folder folder;
  Rep own, joint, embedding;
  {
    const auto other = MemoryFile::open(folder / "b.mneme", Access::create);
    other->set_meta("model", "theirs");
    other->set_meta("rule", "theirs");
    put_text(*other, "padding", story(100, 20));
    const auto shared = put_text(*other, "shared", story(0, 3));
    const auto changed = put_text(*other, "changed", story(10, 3));
    const auto fresh = put_text(*other, "fresh", story(20, 3));
    own = check::state_of(fresh.spans[1], 100'000, 1);
    joint = check::state_of(fresh.spans[2], 100'000, 2);
    joint.provenance = {shared.document, fresh.document};
    auto conflicting = check::state_of(fresh.spans[3], 100'000, 3);
    conflicting.provenance = {changed.document, fresh.document};
    embedding = check::embedding_of(shared.spans[1]);
    ASSERT_EQ(other->put(std::vector{own, joint, conflicting, embedding}, Admission::ahead).stored,
              4);
    other->append_turn("theirs", {0, "assistant", "From fresh.", {}, {fresh.document}, 0});
    other->append_turn("default", {0, "user", "Not taken.", {}, {}, 0});
    // A talk whose first answer has been forgotten, with its question, and whose next turns are a document.
    const auto gone = put_text(*other, "gone", "Soon forgotten.");
    for (int i = 1; i <= 5; ++i) {
      Turn turn{0, i % 2 == 1 ? "user" : "assistant", "turn " + std::to_string(i), {}, {}, 0};
      if (i == 2) turn.provenance = {gone.document};
      other->append_turn("long", turn);
    }
    other->forget("gone");
    put_text(*other, "long turns 3-4", "turn 3, turn 4", {"long", {}, 3, 4});
  }
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create);
  file->set_meta("model", "ours");
  const auto shared = put_text(*file, "shared", story(0, 3));
  put_text(*file, "changed", "Our own text.");
  file->append_turn("default", {0, "user", "Ours.", {}, {}, 0});

  ImportOptions options;
  options.conflict = ImportOptions::Conflict::refuse;
  EXPECT_EQ(error_of([&] { file->import_from(folder / "b.mneme", options); }), Errc::invalid);
  EXPECT_EQ(file->documents().size(), 2u);
  EXPECT_EQ(error_of([&] { file->import_from(folder / "a.mneme", options); }), Errc::invalid);
  EXPECT_EQ(error_of([&] { file->import_from(folder / "none.mneme", options); }), Errc::not_found);

  options.conflict = ImportOptions::Conflict::keep;
  const auto report = file->import_from(folder / "b.mneme", options);
  EXPECT_EQ(report.added, 3);
  EXPECT_EQ(report.unchanged, 1);
  EXPECT_EQ(report.replaced, 0);
  EXPECT_EQ(report.kept, std::vector<std::string>{"changed"});
  EXPECT_EQ(report.states.stored, 3);
  EXPECT_EQ(report.reps_left_out, 1) << "its context was not imported";
  EXPECT_EQ(report.sessions, 2);
  EXPECT_EQ(report.sessions_left_out, std::vector<std::string>{"default"});
  EXPECT_EQ(report.turns_left_out, 0);
  EXPECT_EQ(report.documents_left_out, 0);
  EXPECT_EQ(file->meta("model"), "ours");
  EXPECT_EQ(file->meta("rule"), "theirs");
  const auto fresh = file->find_document("fresh");
  ASSERT_TRUE(fresh);
  const auto spans = file->spans(fresh->document.id);
  own.key.span = spans[1].id;
  joint.key.span = spans[2].id;
  embedding.key.span = shared.spans[1];
  EXPECT_EQ(file->get(own.key)->blob, own.blob);
  EXPECT_EQ(file->get(joint.key)->blob, joint.blob);
  EXPECT_EQ(file->get(joint.key)->provenance, (std::vector{shared.document, fresh->document.id}));
  EXPECT_EQ(file->get(embedding.key)->blob, embedding.blob);
  EXPECT_EQ(file->turns("theirs").at(0).provenance, std::vector{fresh->document.id});
  EXPECT_EQ(file->turns("default").size(), 1u);
  const auto turns = file->turns("long");
  ASSERT_EQ(turns.size(), 3u);
  EXPECT_EQ(turns[0].number, 3);
  EXPECT_EQ(turns[0].text, "turn 3");
  EXPECT_EQ(file->moved_turns("long"), 4);
  EXPECT_EQ(file->find_document("long turns 3-4")->first_turn, 3);
  expect_sound(*file);

  options.conflict = ImportOptions::Conflict::replace;
  const auto again = file->import_from(folder / "b.mneme", options);
  EXPECT_EQ(again.added, 0);
  EXPECT_EQ(again.replaced, 1);
  EXPECT_EQ(again.unchanged, 3);
  EXPECT_EQ(file->document_text(file->find_document("changed")->document.id), story(10, 3));
  expect_sound(*file);
}

TEST(Import, CountsWhatItLeavesOutOfSessions) {
  const Folder folder;
  {
    const auto other = MemoryFile::open(folder / "b.mneme", Access::create);
    const auto changed = put_text(*other, "changed", story(10, 3));
    const std::vector<Turn> turns{{0, "user", "Whose are the ships?", {}, {}, 0},
                                  {0, "assistant", "From changed.", {}, {changed.document}, 0},
                                  {0, "user", "Hello", {}, {}, 0},
                                  {0, "assistant", "Good day.", {}, {}, 0}};
    other->append_turns("talk", turns);
    put_text(*other, "talk turns 1-2", "From changed.", {"talk", {changed.document}, 1, 2});
    // As versions before this one let in.
    ASSERT_EQ(sqlite3_exec(other->handle(),
                           "INSERT INTO sessions (name, created_at) VALUES ('a' || char(10), 1)",
                           nullptr, nullptr, nullptr),
              SQLITE_OK);
  }
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create);
  put_text(*file, "changed", "Our own text.");
  ImportOptions options;
  options.conflict = ImportOptions::Conflict::keep;
  const auto report = file->import_from(folder / "b.mneme", options);
  EXPECT_EQ(report.turns_left_out, 2) << "an answer, and the question with it";
  EXPECT_EQ(report.documents_left_out, 1);
  EXPECT_EQ(report.sessions, 1);
  EXPECT_EQ(report.sessions_left_out, std::vector<std::string>{"a\n"});
  const auto turns = file->turns("talk");
  ASSERT_EQ(turns.size(), 2u);
  EXPECT_EQ(turns[0].text, "Hello");
  EXPECT_EQ(file->documents().size(), 1u);
  expect_sound(*file);
}

TEST(Import, RefusesNoConflictOfASessionThatStaysAway) {
  const Folder folder;
  for (const auto* name : {"a.mneme", "b.mneme"}) {
    const auto file = MemoryFile::open(folder / name, Access::create);
    const Turn turn{0, "user", name, {}, {}, 0};
    file->append_turns("default", std::vector<Turn>{turn, turn});
    put_text(*file, "default turns 1-2", std::string("Talk of ") + name, {"default", {}, 1, 2});
  }
  const auto file = MemoryFile::open(folder / "a.mneme", Access::read_write);
  ImportOptions options;
  options.conflict = ImportOptions::Conflict::refuse;
  EXPECT_EQ(file->import_from(folder / "b.mneme", options).sessions_left_out,
            std::vector<std::string>{"default"});
  EXPECT_EQ(file->document_text(file->find_document("default turns 1-2")->document.id),
            "Talk of a.mneme");
}

TEST(Import, AKilledOneLeavesNoSessionInPart) {
  const Folder folder;
  {
    const auto other = MemoryFile::open(folder / "b.mneme", Access::create);
    const auto book = put_text(*other, "book", story(0, 3));
    const std::vector<Turn> turns{{0, "user", "Whose are the ships?", {}, {}, 0},
                                  {0, "assistant", "The book's.", {}, {book.document}, 0}};
    other->append_turns("talk", turns);
    put_text(*other, "talk turns 1-2", "The book's.", {"talk", {book.document}, 1, 2});
  }
  const pid_t child = ::fork();
  if (child == 0) {
    const auto file = MemoryFile::open(folder / "a.mneme", Access::create);
    const auto on_statement = [](unsigned, void*, void* statement, void*) -> int {
      const char* sql = sqlite3_sql(static_cast<sqlite3_stmt*>(statement));
      if (sql != nullptr && std::string_view(sql).starts_with("INSERT INTO turns")) ::_exit(7);
      return 0;
    };
    sqlite3_trace_v2(file->handle(), SQLITE_TRACE_STMT, on_statement, nullptr);
    file->import_from(folder / "b.mneme", {});
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << "killed between document and turns";
  const auto file = MemoryFile::open(folder / "a.mneme", Access::read_write);
  EXPECT_TRUE(file->sessions().empty());
  const auto report = file->import_from(folder / "b.mneme", {});
  EXPECT_EQ(report.sessions, 1);
  EXPECT_EQ(file->turns("talk").size(), 2u);
  EXPECT_EQ(file->moved_turns("talk"), 2);
  expect_sound(*file);
}

}  // namespace
}  // namespace mneme
