// Forgetting, and what a killed process leaves behind.
#include "mneme/memory/memory_file.h"

#include "memory_fixture.h"
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

namespace mneme {
namespace {

using check::as_ordinary_user;
using check::error_of;
using check::expect_sound;
using check::Folder;
using check::found_in;
using check::put_text;
using check::story;
using Access = MemoryFile::Access;

// Words that occur in the secret only: as text, and as FTS5 stores them (stems, behind shared
// prefixes).
const std::string kSecret =
    "Quillfeather buried the xylographs beneath Zanzibar.\n\nHer password was vorpalblade, written "
    "in ultramarine.";
const std::vector<std::string> kTraces = {"Quillfeather", "quillfeath",   "xylograph",
                                          "vorpalblade",  "vorpalblad",   "beneath Zanzibar",
                                          "ultramarin",   "secret-source"};

TEST(Forget, LeavesNoByteOfTheSource) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  {
    const auto file = MemoryFile::open(path, Access::create);
    put_text(*file, "book", story(0, 400));
    const auto secret = put_text(*file, "secret-source", kSecret);
    const auto other = put_text(*file, "other", story(400, 20));
    // A cached answer, a state of another source that had the secret in its context, turns, what a
    // chat made of it.
    Rep answer;
    answer.key = {other.spans[1], RepKind::text, "model", -1, "", "question"};
    answer.blob = "The password is vorpalblade.";
    answer.provenance = {secret.document};
    auto joint = check::state_of(other.spans[2], 100'000, 7);
    joint.blob.replace(5000, 11, "vorpalblade");
    joint.provenance = {secret.document, other.document};
    auto own = check::state_of(secret.spans[1], 100'000, 8);
    auto innocent = check::state_of(other.spans[3], 100'000, 9);
    ASSERT_EQ(file->put(std::vector{answer, joint, own, innocent}, Admission::ahead).stored, 4);
    file->put_index({"dense", "flat", "embedder", file->generation(), 0}, "index of vorpalblade");
    file->append_turn("default", {0, "user", "What was it?", {}, {}, 0});
    file->append_turn("default", {0, "assistant", "It was vorpalblade.", {}, {secret.document}, 0});
    const auto said =
        put_text(*file, "chat/1", "assistant: It was vorpalblade.", {"default", {secret.document}});
    put_text(*file, "chat/2", "From that: vorpalblade again.", {"default", {said.document}});
    // Churn, so that the secret's words lie in several segments and free pages.
    for (int i = 0; i < 5; ++i)
      put_text(*file, "churn", story(500 + 40 * i, 40) + "\n\n" + (i == 2 ? kSecret : ""));
  }
  ASSERT_TRUE(found_in(folder, "quillfeath")) << "the test can see traces";
  {
    const auto file = MemoryFile::open(path, Access::read_write);
    const auto report = file->forget("secret-source");
    EXPECT_EQ(report.labels, (std::vector<std::string>{"secret-source", "chat/1", "chat/2"}));
    EXPECT_EQ(report.reps, 3);
    EXPECT_EQ(report.turns, 2) << "the answer and its question";
    EXPECT_TRUE(report.cleaned);
    for (const auto& trace : kTraces)
      EXPECT_FALSE(found_in(folder, trace)) << trace << " while still open";
    expect_sound(*file);
    EXPECT_EQ(file->documents().size(), 3u);
    EXPECT_EQ(file->turns("default").size(), 0u);
    EXPECT_EQ(file->usage().spans_with_states, 1);
    EXPECT_FALSE(file->find_index("dense"));
    EXPECT_EQ(error_of([&] { file->forget("secret-source"); }), Errc::not_found);
  }
  for (const auto& trace : kTraces) EXPECT_FALSE(found_in(folder, trace)) << trace;
  EXPECT_EQ(folder.files(), std::vector<std::string>{"a.mneme"});
  // What is left is still found by its words.
  const auto file = MemoryFile::open(path, Access::read_only);
  sqlite3_stmt* statement = nullptr;
  ASSERT_EQ(sqlite3_prepare_v2(file->handle(),
                               "SELECT count(*) FROM spans_fts WHERE spans_fts MATCH 'keeper'", -1,
                               &statement, nullptr),
            SQLITE_OK);
  ASSERT_EQ(sqlite3_step(statement), SQLITE_ROW);
  EXPECT_EQ(sqlite3_column_int(statement, 0), 460);
  sqlite3_finalize(statement);
}

TEST(Forget, IsFinishedByTheNextOneIfAReaderStandsInTheWay) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  MemoryFile::Options hasty;
  hasty.busy_timeout = std::chrono::milliseconds(50);
  {
    const auto file = MemoryFile::open(path, Access::create, hasty);
    put_text(*file, "book", story(0, 50));
    put_text(*file, "secret-source", kSecret);
    const auto reader = MemoryFile::open(path, Access::read_only, hasty);
    ASSERT_EQ(sqlite3_exec(reader->handle(), "BEGIN; SELECT count(*) FROM spans", nullptr, nullptr,
                           nullptr),
              SQLITE_OK);
    const auto report = file->forget("secret-source");
    EXPECT_FALSE(report.cleaned);
    EXPECT_EQ(file->documents().size(), 1u) << "gone for everybody who looks now";
    const auto next = MemoryFile::open(path, Access::read_only, hasty);
    EXPECT_TRUE(next->usage().forget_unfinished);
    const auto problems = next->verify().problems;
    ASSERT_EQ(problems.size(), 1u);
    EXPECT_EQ(problems[0].find("forgetting: "), 0u) << problems[0];
    ASSERT_TRUE(found_in(folder, "quillfeath")) << "the test can see traces";
    ASSERT_EQ(sqlite3_exec(reader->handle(), "ROLLBACK", nullptr, nullptr, nullptr), SQLITE_OK);
  }
  // The next one only wants to look.
  const auto file = MemoryFile::open(path, Access::read_only);
  for (const auto& trace : kTraces) EXPECT_FALSE(found_in(folder, trace)) << trace;
  EXPECT_FALSE(file->usage().forget_unfinished);
  EXPECT_EQ(folder.files(), std::vector<std::string>{"a.mneme"});
  expect_sound(*file);
}

TEST(Forget, WhoeverCannotFinishItSaysSo) {
  const Folder folder;
  namespace fs = std::filesystem;
  const auto path = folder / "a.mneme";
  {
    const auto file = MemoryFile::open(path, Access::create);
    put_text(*file, "book", story(0, 5));
    // As a process leaves it that is killed between deleting and rewriting.
    file->set_meta("forgetting", "1");
  }
  fs::permissions(path, fs::perms(0444));
  fs::permissions(folder.path(), fs::perms(0555));
  for (const auto access : {Access::read_only, Access::read_write}) {
    EXPECT_TRUE(as_ordinary_user([&] {
      const auto file = MemoryFile::open(path, access);
      const auto problems = file->verify().problems;
      return file->usage().forget_unfinished && problems.size() == 1 &&
             problems[0].starts_with("forgetting: ") && file->documents().size() == 1;
    }));
  }
  fs::permissions(folder.path(), fs::perms(0755));
  fs::permissions(path, fs::perms(0644));
  const auto file = MemoryFile::open(path, Access::read_only);
  EXPECT_FALSE(file->usage().forget_unfinished);
  expect_sound(*file);
}

TEST(Forget, FinishingOneLeavesTheMarkOfTheNext) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  MemoryFile::Options hasty;
  hasty.busy_timeout = std::chrono::milliseconds(50);
  const auto first = MemoryFile::open(path, Access::create, hasty);
  put_text(*first, "book", story(0, 50));
  put_text(*first, "other", story(50, 5));
  put_text(*first, "secret-source", kSecret);
  struct Meanwhile {
    std::unique_ptr<MemoryFile> second, reader;
    std::filesystem::path path;
    MemoryFile::Options options;
    int transactions = 0;
    bool cleaned = true;
  } meanwhile;
  meanwhile.path = path;
  meanwhile.options = hasty;
  // When the first has rewritten the file and is about to take its mark away, a second one forgets
  // and is held up by a reader.
  const auto on_statement = [](unsigned, void* context, void* statement, void*) -> int {
    auto& m = *static_cast<Meanwhile*>(context);
    const char* sql = sqlite3_sql(static_cast<sqlite3_stmt*>(statement));
    if (sql == nullptr || std::strcmp(sql, "BEGIN IMMEDIATE") != 0 || ++m.transactions != 2)
      return 0;
    m.reader = MemoryFile::open(m.path, Access::read_only, m.options);
    sqlite3_exec(m.reader->handle(), "BEGIN; SELECT count(*) FROM spans", nullptr, nullptr,
                 nullptr);
    m.second = MemoryFile::open(m.path, Access::read_write, m.options);
    m.cleaned = m.second->forget("secret-source").cleaned;
    return 0;
  };
  sqlite3_trace_v2(first->handle(), SQLITE_TRACE_STMT, on_statement, &meanwhile);
  first->forget("other");
  sqlite3_trace_v2(first->handle(), 0, nullptr, nullptr);
  ASSERT_GE(meanwhile.transactions, 2);
  EXPECT_FALSE(meanwhile.cleaned);
  EXPECT_TRUE(first->usage().forget_unfinished);
  sqlite3_exec(meanwhile.reader->handle(), "ROLLBACK", nullptr, nullptr, nullptr);
  meanwhile.reader.reset();
  meanwhile.second.reset();
  first->close();
  const auto file = MemoryFile::open(path, Access::read_only);
  for (const auto& trace : kTraces) EXPECT_FALSE(found_in(folder, trace)) << trace;
}

MemoryFile::PutOptions holding(std::int64_t first, std::int64_t last,
                               std::vector<std::int64_t> provenance = {}) {
  MemoryFile::PutOptions options;
  options.session = "default";
  options.provenance = std::move(provenance);
  options.first_turn = first;
  options.last_turn = last;
  return options;
}

std::vector<std::int64_t> numbers_of(const std::vector<Turn>& turns) {
  std::vector<std::int64_t> numbers;
  for (const auto& turn : turns) numbers.push_back(turn.number);
  return numbers;
}

TEST(Forget, TurnsGoWithTheDocumentThatHoldsThem) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  {
    const auto file = MemoryFile::open(path, Access::create);
    EXPECT_EQ(file->moved_turns("default"), 0);
    for (int i = 0; i < 3; ++i) {
      file->append_turn("default", {0, "user", i == 0 ? kSecret : "And then?", {}, {}, 0});
      file->append_turn("default",
                        {0, "assistant", i == 0 ? "I keep the vorpalblade." : "Ships.", {}, {}, 0});
    }
    file->append_turn("other", {0, "user", "Of another session.", {}, {}, 0});
    EXPECT_EQ(error_of([&] { put_text(*file, "x", "x", holding(2, 1)); }), Errc::invalid);
    EXPECT_EQ(error_of([&] { put_text(*file, "x", "x", holding(0, 1)); }), Errc::invalid);
    EXPECT_EQ(error_of([&] { put_text(*file, "x", "x", {"", {}, 1, 2}); }), Errc::invalid);
    EXPECT_EQ(error_of([&] { put_text(*file, "x", "x", holding(5, 7)); }), Errc::not_found);
    put_text(*file, "default turns 1-2", kSecret + "\n\nI keep the vorpalblade.", holding(1, 2));
    EXPECT_EQ(file->moved_turns("default"), 2);
    put_text(*file, "default turns 3-4", "And then?\n\nShips.", holding(3, 4));
    EXPECT_EQ(file->moved_turns("default"), 4);
    EXPECT_EQ(file->moved_turns("other"), 0);
    EXPECT_EQ(file->find_document("default turns 3-4")->first_turn, 3);
    EXPECT_EQ(file->find_document("default turns 3-4")->last_turn, 4);
    expect_sound(*file);
    const auto report = file->forget("default turns 1-2");
    EXPECT_EQ(report.turns, 2);
    EXPECT_TRUE(report.cleaned);
    EXPECT_EQ(numbers_of(file->turns("default")), (std::vector<std::int64_t>{3, 4, 5, 6}));
    EXPECT_EQ(file->moved_turns("default"), 4) << "what comes next is after it";
    // A chat that has read the turns before they were forgotten.
    EXPECT_EQ(error_of([&] { put_text(*file, "default turns 1-2", kSecret, holding(1, 2)); }),
              Errc::not_found);
    expect_sound(*file);
  }
  for (const auto& trace : kTraces) EXPECT_FALSE(found_in(folder, trace)) << trace;
  const auto file = MemoryFile::open(path, Access::read_write);
  EXPECT_EQ(file->append_turn("default", {0, "user", "More?", {}, {}, 0}), 7);
  file->forget("default turns 3-4");
  EXPECT_EQ(numbers_of(file->turns("default")), (std::vector<std::int64_t>{5, 6, 7}));
  EXPECT_LE(file->moved_turns("default"), 4);
  EXPECT_EQ(file->turns("other").size(), 1u);
}

TEST(Forget, TurnsStayWhenTheirDocumentGoesForASource) {
  const Folder folder;
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create);
  const auto secret = put_text(*file, "secret-source", kSecret).document;
  const std::vector<Turn> turns{{0, "user", "What is kept?", {}, {}, 0},
                                {0, "assistant", "The vorpalblade.", {}, {secret}, 0},
                                {0, "user", "And how many ships?", {}, {}, 0},
                                {0, "assistant", "Four.", {}, {}, 0}};
  file->append_turns("default", turns);
  put_text(*file, "default turns 1-4", "The vorpalblade. Four.", holding(1, 4, {secret}));
  const auto report = file->forget("secret-source");
  EXPECT_EQ(report.labels, (std::vector<std::string>{"secret-source", "default turns 1-4"}));
  EXPECT_EQ(report.turns, 2) << "the answer and its question";
  EXPECT_EQ(numbers_of(file->turns("default")), (std::vector<std::int64_t>{3, 4}));
  EXPECT_EQ(file->moved_turns("default"), 0) << "they are in the context again";
  for (const auto& trace : kTraces) EXPECT_FALSE(found_in(folder, trace)) << trace;
}

TEST(Forget, NumbersOfTurnsThatADocumentHoldsAreNotGivenAgain) {
  const Folder folder;
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create);
  const auto secret = put_text(*file, "secret-source", kSecret).document;
  file->append_turn("default", {0, "assistant", "The vorpalblade.", {}, {secret}, 0});
  put_text(*file, "default turns 1-1", "Something else.", holding(1, 1));
  file->forget("secret-source");
  EXPECT_TRUE(file->turns("default").empty());
  EXPECT_EQ(file->append_turn("default", {0, "user", "Next.", {}, {}, 0}), 2);
  expect_sound(*file);
}

// Runs `work` in a child and kills it after `delay`; whether it was killed before it came to its
// end.
bool killed_after(std::chrono::microseconds delay, const std::function<void(int)>& work,
                  std::string* said) {
  int pipe_ends[2];
  if (::pipe(pipe_ends) != 0) return false;
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(pipe_ends[0]);
    try {
      work(pipe_ends[1]);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
      ::_exit(3);
    }
    ::_exit(0);
  }
  ::close(pipe_ends[1]);
  // The clock runs from the first word of the child, when it has opened the file.
  char c = 0;
  if (::read(pipe_ends[0], &c, 1) == 1) ::usleep(static_cast<useconds_t>(delay.count()));
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  std::string rest;
  while (::read(pipe_ends[0], &c, 1) == 1) rest += c;
  ::close(pipe_ends[0]);
  if (said != nullptr) *said = rest;
  EXPECT_FALSE(WIFEXITED(status) && WEXITSTATUS(status) == 3) << "the child met an error";
  return WIFSIGNALED(status);
}

void say(int descriptor, char c) {
  if (::write(descriptor, &c, 1) != 1) ::_exit(4);
}

// The system calls by which SQLite changes files, counted: the process ends itself before a chosen one.
std::int64_t changes_left = -1;

void count_change() {
  if (changes_left-- == 0) ::kill(::getpid(), SIGKILL);
}
ssize_t counted_write(int file, const void* bytes, std::size_t n) {
  count_change();
  return ::write(file, bytes, n);
}
ssize_t counted_pwrite(int file, const void* bytes, std::size_t n, off_t at) {
  count_change();
  return ::pwrite(file, bytes, n, at);
}
int counted_ftruncate(int file, off_t size) {
  count_change();
  return ::ftruncate(file, size);
}
int counted_unlink(const char* path) {
  count_change();
  return ::unlink(path);
}

void die_before_change(std::int64_t n) {
  changes_left = n;
  auto* vfs = sqlite3_vfs_find("unix");
  const std::pair<const char*, sqlite3_syscall_ptr> calls[] = {
      {"write", reinterpret_cast<sqlite3_syscall_ptr>(counted_write)},
      {"pwrite", reinterpret_cast<sqlite3_syscall_ptr>(counted_pwrite)},
      {"pwrite64", reinterpret_cast<sqlite3_syscall_ptr>(counted_pwrite)},
      {"ftruncate", reinterpret_cast<sqlite3_syscall_ptr>(counted_ftruncate)},
      {"unlink", reinterpret_cast<sqlite3_syscall_ptr>(counted_unlink)}};
  for (const auto& [name, call] : calls) vfs->xSetSystemCall(vfs, name, call);
}

// Forgets in a child that is killed before its n-th change of a file; whether it came to its end.
// `journal`: as on file systems without shared memory, where there is no WAL mode.
bool forgets_before_change(const std::filesystem::path& path, std::int64_t n, bool journal) {
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      if (journal) sqlite3_vfs_register(sqlite3_vfs_find("unix-none"), 1);
      die_before_change(n);
      const auto file = MemoryFile::open(path, Access::read_write);
      file->forget("secret-source");
      file->close();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
      ::_exit(3);
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_FALSE(WIFEXITED(status) && WEXITSTATUS(status) != 0) << "the child met an error";
  return WIFEXITED(status);
}

// The bytes of a memory with a secret in it.
std::string memory_with_secret() {
  const Folder folder;
  const auto path = folder / "a.mneme";
  {
    const auto file = MemoryFile::open(path, Access::create);
    put_text(*file, "book", story(0, 60));
    put_text(*file, "secret-source", kSecret);
    const auto state = check::state_of(file->spans(1)[1].id, 100'000);
    file->put({&state, 1}, Admission::ahead);
  }
  return check::file_bytes(path);
}

class ForgetKilled : public ::testing::TestWithParam<bool> {};

TEST_P(ForgetKilled, BeforeAnyChangeOfAFileIsPutRightByTheNextReader) {
  const bool journal = GetParam();
  const auto whole = memory_with_secret();
  int undone = 0, done = 0;
  bool ended = false;
  for (std::int64_t n = 0; !ended; ++n) {
    ASSERT_LT(n, 5000);
    const Folder folder;
    const auto path = folder / "a.mneme";
    check::write_file(path, whole);
    ended = forgets_before_change(path, n, journal);
    {
      const auto file = MemoryFile::open(path, Access::read_only);
      expect_sound(*file);
      EXPECT_FALSE(file->usage().forget_unfinished);
      EXPECT_EQ(file->usage().spans_with_states, 1);
      if (const auto secret = file->find_document("secret-source")) {
        ++undone;
        EXPECT_EQ(file->document_text(secret->document.id), kSecret);
        EXPECT_EQ(done, 0);
      } else {
        ++done;
        for (const auto& trace : kTraces)
          EXPECT_FALSE(found_in(folder, trace)) << trace << " while it is open";
      }
    }
    if (done > 0) {
      for (const auto& trace : kTraces) EXPECT_FALSE(found_in(folder, trace)) << trace;
    }
    if (::testing::Test::HasFailure()) FAIL() << "killed before change " << n;
  }
  EXPECT_GT(undone, 10);
  EXPECT_GT(done, 10);
}

INSTANTIATE_TEST_SUITE_P(Crash, ForgetKilled, ::testing::Values(false, true),
                         [](const auto& info) { return info.param ? "Journal" : "Wal"; });

TEST(Crash, AJournalLeftWhereNothingMayBeWrittenIsOneLine) {
  namespace fs = std::filesystem;
  const auto whole = memory_with_secret();
  const Folder folder;
  const auto path = folder / "a.mneme";
  const auto left_hot = [&] {
    sqlite3* handle = nullptr;
    sqlite3_open_v2(path.c_str(), &handle, SQLITE_OPEN_READONLY, nullptr);
    sqlite3_exec(handle, "SELECT count(*) FROM sqlite_schema", nullptr, nullptr, nullptr);
    const int code = sqlite3_extended_errcode(handle);
    sqlite3_close(handle);
    return code == SQLITE_READONLY_ROLLBACK;
  };
  bool hot = false;
  for (std::int64_t n = 0; !hot; ++n) {
    fs::remove(path.string() + "-journal");
    check::write_file(path, whole);
    ASSERT_FALSE(forgets_before_change(path, n, true)) << "no journal was ever left";
    hot = left_hot();
  }
  fs::permissions(path, fs::perms(0444));
  fs::permissions(path.string() + "-journal", fs::perms(0444));
  for (const int mode : {0555, 0777}) {
    fs::permissions(folder.path(), fs::perms(mode));
    for (const auto access : {Access::read_only, Access::read_write}) {
      EXPECT_TRUE(as_ordinary_user([&] {
        std::string message;
        const auto code = error_of([&] { MemoryFile::open(path, access); }, &message);
        return code == Errc::io && message.find("was interrupted") != std::string::npos;
      })) << mode;
    }
  }
  EXPECT_TRUE(left_hot()) << "nothing was tried on it";
  fs::permissions(folder.path(), fs::perms(0755));
  fs::permissions(path, fs::perms(0644));
  const auto file = MemoryFile::open(path, Access::read_only);
  EXPECT_TRUE(file->find_document("secret-source"));
  expect_sound(*file);
  EXPECT_EQ(folder.files(), std::vector<std::string>{"a.mneme"});
}

TEST(Crash, KilledAtRandomMomentsNothingIsHalfAndNoAcknowledgedTurnIsLost) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  MemoryFile::Options options;
  options.budget_bytes = 3 << 20;
  std::mt19937_64 generator(2024);
  std::int64_t acknowledged = 0;
  int killed = 0;
  for (int round = 0; round < 30; ++round) {
    const auto seed = generator();
    std::string said;
    const auto delay = std::chrono::microseconds(generator() % (round % 2 == 0 ? 5'000 : 60'000));
    killed +=
        killed_after(
            delay,
            [&](int out) {
              if (round < 3) say(out, 'o');  // the making of the file is among what is interrupted
              const auto file = MemoryFile::open(path, Access::create, options);
              file->set_consolidate(
                  [](const Rep& rep, std::int64_t) -> std::optional<Rep> {
                    Rep half = rep;
                    half.blob.resize(rep.blob.size() / 2);
                    half.key.codec = "half";
                    return half;
                  },
                  1);
              if (round >= 3) say(out, 'o');
              std::mt19937_64 local(seed);
              while (true) {
                const auto label = "source " + std::to_string(local() % 4);
                switch (local() % 5) {
                  case 0:
                    put_text(*file, label, story(static_cast<int>(local() % 1000), 30));
                    break;
                  case 1: {
                    std::vector<std::int64_t> spans;
                    file->for_each_passage([&](const Span& s) { spans.push_back(s.id); });
                    if (spans.empty()) break;
                    std::vector<Rep> states;
                    for (int i = 0; i < 4; ++i)
                      states.push_back(check::state_of(spans[local() % spans.size()],
                                                       local() % 400'000, local()));
                    file->touch(std::vector{states[0].key.span});
                    file->put(states,
                              local() % 2 == 0 ? Admission::for_question : Admission::ahead);
                    break;
                  }
                  case 2:
                  case 3: {
                    const auto turns = file->turns("default").size();
                    file->append_turn("default",
                                      {0, "user", "turn " + std::to_string(turns + 1), {}, {}, 0});
                    say(out, 't');
                    break;
                  }
                  case 4:
                    if (file->find_document(label)) file->forget(label);
                    break;
                }
              }
            },
            &said)
            ? 1
            : 0;
    acknowledged += static_cast<std::int64_t>(std::count(said.begin(), said.end(), 't'));
    if (!std::filesystem::exists(path)) continue;
    const auto file = MemoryFile::open(path, Access::create, options);
    expect_sound(*file);
    const auto turns = file->turns("default");
    const auto count = static_cast<std::int64_t>(turns.size());
    EXPECT_GE(count, acknowledged) << "round " << round;
    EXPECT_LE(count, acknowledged + 1) << "round " << round;
    for (std::int64_t i = 0; i < count; ++i) {
      EXPECT_EQ(turns[static_cast<std::size_t>(i)].text, "turn " + std::to_string(i + 1));
      EXPECT_EQ(turns[static_cast<std::size_t>(i)].number, i + 1);
    }
    acknowledged = count;  // the one that was stored but not yet said
    const auto usage = file->usage();
    EXPECT_LE(usage.state_page_bytes + usage.free_page_bytes, options.budget_bytes);
    EXPECT_FALSE(file->meta("forgetting"));
    if (::testing::Test::HasFailure()) FAIL() << "in round " << round;
  }
  EXPECT_EQ(killed, 30);
  EXPECT_GT(acknowledged, 0);
}

TEST(Crash, KilledWhileTheFileIsMadeItBecomesNew) {
  std::mt19937_64 generator(5);
  for (int round = 0; round < 100; ++round) {
    const Folder folder;
    const auto path = folder / "a.mneme";
    killed_after(
        std::chrono::microseconds(generator() % 4000),
        [&](int out) {
          say(out, 'o');
          MemoryFile::open(path, Access::create)->set_meta("model", "m");
          ::pause();
        },
        nullptr);
    const auto file = MemoryFile::open(path, Access::create);
    put_text(*file, "book", story(0, 2));
    expect_sound(*file);
  }
}

TEST(Crash, KilledWhileForgettingNothingIsLeftOnceItIsOpenedAgain) {
  std::mt19937_64 generator(7);
  int interrupted = 0;
  for (int round = 0; round < 10; ++round) {
    const Folder folder;
    const auto path = folder / "a.mneme";
    {
      const auto file = MemoryFile::open(path, Access::create);
      put_text(*file, "book", story(0, 300));
      put_text(*file, "secret-source", kSecret);
      const auto book = file->spans(1);
      std::vector<Rep> states;
      for (int i = 1; i < 12; ++i)
        states.push_back(check::state_of(book[static_cast<std::size_t>(i)].id, 300'000,
                                         static_cast<std::uint64_t>(i)));
      file->put(states, Admission::ahead);
    }
    std::string said;
    killed_after(
        std::chrono::microseconds(generator() % 40'000),
        [&](int out) {
          const auto file = MemoryFile::open(path, Access::read_write);
          say(out, 'o');
          file->forget("secret-source");
          say(out, 'd');
          ::pause();
        },
        &said);
    interrupted += said.empty() ? 1 : 0;
    const auto file =
        MemoryFile::open(path, round % 2 == 0 ? Access::read_only : Access::read_write);
    expect_sound(*file);
    EXPECT_EQ(file->usage().spans_with_states, 11);
    if (file->find_document("secret-source")) {
      EXPECT_TRUE(said.empty());
      continue;  // killed before the deletion was made, and nothing was said to be forgotten
    }
    for (const auto& trace : kTraces)
      EXPECT_FALSE(found_in(folder, trace)) << trace << " in round " << round;
  }
  EXPECT_GT(interrupted, 0);
}

}  // namespace
}  // namespace mneme
