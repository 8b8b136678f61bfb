// Forgetting, and what a killed process leaves behind.
#include "mneme/memory/memory_file.h"

#include "memory_fixture.h"
#include <csignal>
#include <cstring>
#include <map>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

namespace mneme {
namespace {

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
    EXPECT_EQ(report.turns, 1);
    EXPECT_TRUE(report.cleaned);
    for (const auto& trace : kTraces)
      EXPECT_FALSE(found_in(folder, trace)) << trace << " while still open";
    expect_sound(*file);
    EXPECT_EQ(file->documents().size(), 3u);
    EXPECT_EQ(file->turns("default").size(), 1u);
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
    ASSERT_EQ(sqlite3_exec(reader->handle(), "ROLLBACK", nullptr, nullptr, nullptr), SQLITE_OK);
  }
  {
    const auto file = MemoryFile::open(path, Access::read_write);
  }
  for (const auto& trace : kTraces) EXPECT_FALSE(found_in(folder, trace)) << trace;
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
    const auto file = MemoryFile::open(path, Access::read_write);
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
