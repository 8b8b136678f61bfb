// The byte budget: never exceeded at any moment, whoever looks; what gives way; what stays.
#include "mneme/memory/memory_file.h"

#include "memory_fixture.h"
#include <atomic>
#include <set>
#include <thread>

namespace mneme {
namespace {

using check::error_of;
using check::expect_sound;
using check::Folder;
using check::put_text;
using check::story;
using Access = MemoryFile::Access;

constexpr std::int64_t kBudget = 4 << 20;

MemoryFile::Options with_budget(std::int64_t bytes) {
  MemoryFile::Options options;
  options.budget_bytes = bytes;
  return options;
}

// Halves a state: the codec says how often.
std::optional<Rep> halve(const Rep& state, std::int64_t rung) {
  Rep smaller = state;
  smaller.blob.resize(state.blob.size() / 2);
  smaller.key.codec = "int" + std::to_string(8 >> (rung + 1));
  return smaller;
}

// Looks at the sizes of the file and its -wal as fast as it can, from outside.
class Sampler {
 public:
  explicit Sampler(std::filesystem::path path)
      : path_(std::move(path)), thread_([this] { run(); }) {}
  ~Sampler() { stop(); }
  std::int64_t stop() {
    done_ = true;
    if (thread_.joinable()) thread_.join();
    return largest_;
  }

 private:
  void run() {
    while (!done_) {
      std::error_code no_file, no_wal;
      const auto file = std::filesystem::file_size(path_, no_file);
      const auto wal = std::filesystem::file_size(path_.string() + "-wal", no_wal);
      largest_ =
          std::max(largest_, static_cast<std::int64_t>((no_file ? 0 : file) + (no_wal ? 0 : wal)));
    }
  }
  std::filesystem::path path_;
  std::atomic<bool> done_{false};
  std::int64_t largest_ = 0;
  std::thread thread_;
};

TEST(Budget, IsNeverExceededAtAnySampledMoment) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  const auto file = MemoryFile::open(path, Access::create, with_budget(kBudget));
  file->set_consolidate(halve, 2);
  const auto book = put_text(*file, "book", story(0, 300));
  file->close();
  const auto text_share = static_cast<std::int64_t>(std::filesystem::file_size(path));
  const auto again = MemoryFile::open(path, Access::read_write);
  EXPECT_EQ(again->usage().budget_bytes, kBudget);
  again->set_consolidate(halve, 2);

  Sampler sampler(path);
  std::mt19937_64 generator(11);
  std::int64_t shrunk = 0, dropped = 0;
  for (int round = 0; round < 150; ++round) {
    std::vector<Rep> batch;
    for (std::uint64_t i = 0; i <= generator() % 4; ++i) {
      const auto span = book.spans[1 + generator() % (book.spans.size() - 1)];
      batch.push_back(check::state_of(span, 20'000 + generator() % 300'000, generator()));
    }
    const auto admission = round % 3 == 0 ? Admission::for_question : Admission::ahead;
    if (round % 3 == 0) again->touch(std::vector{batch[0].key.span});
    const auto report = again->put(batch, admission);
    EXPECT_EQ(report.stored + report.not_stored, static_cast<std::int64_t>(batch.size()));
    if (admission == Admission::for_question) {
      EXPECT_EQ(report.not_stored, 0) << report.reason;
    }
    shrunk += report.shrunk;
    dropped += report.dropped;
    const auto usage = again->usage();
    ASSERT_LE(usage.state_page_bytes + usage.free_page_bytes + usage.wal_bytes, kBudget)
        << "round " << round;
    ASSERT_GE(usage.state_page_bytes, usage.state_bytes);
  }
  const auto largest = sampler.stop();
  EXPECT_LE(largest, kBudget + text_share + 64 * 1024) << "64 KiB: rows of reps, digests, counters";
  EXPECT_GT(shrunk, 0);
  EXPECT_GT(dropped, 0);
  const auto usage = again->usage();
  EXPECT_GT(usage.state_bytes, kBudget / 2) << "the budget is used";
  EXPECT_GT(usage.consolidated_spans, 0);
  expect_sound(*again);
}

TEST(Budget, KeepsWhatWasAskedFor) {
  const Folder folder;
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create, with_budget(kBudget));
  file->set_consolidate(halve, 2);
  const auto book = put_text(*file, "book", story(0, 60));
  const std::vector<std::int64_t> asked{book.spans[5], book.spans[30], book.spans[55]};
  file->touch(asked);
  for (const auto span : asked) {
    const auto state = check::state_of(span, 200'000);
    ASSERT_EQ(file->put({&state, 1}, Admission::for_question).stored, 1);
  }
  for (std::size_t i = 1; i < book.spans.size(); ++i) {
    if (std::find(asked.begin(), asked.end(), book.spans[i]) != asked.end()) continue;
    const auto state = check::state_of(book.spans[i], 400'000);
    file->put({&state, 1}, Admission::ahead);
  }
  for (const auto span : asked)
    EXPECT_TRUE(file->has(check::state_of(span, 0).key)) << "whole, in its own codec";
  const auto full = file->usage();
  EXPECT_LT(full.spans_with_states, 60);
  EXPECT_GT(full.spans_with_states, 3);
  // Every passage has its state as it was made, a smaller one, or none, and the last two are
  // counted.
  std::int64_t whole = 0;
  for (std::size_t i = 1; i < book.spans.size(); ++i)
    whole += file->has(check::state_of(book.spans[i], 0).key) ? 1 : 0;
  EXPECT_EQ(full.consolidated_spans + whole, 60);
  EXPECT_EQ(full.text_only_spans + full.spans_with_states, 60);

  // A question about another span: something never asked for goes, the asked ones stay.
  const auto late = check::state_of(book.spans[40], 1'300'000);
  file->touch(std::vector{book.spans[40]});
  const auto report = file->put({&late, 1}, Admission::for_question);
  EXPECT_EQ(report.stored, 1);
  EXPECT_GT(report.dropped + report.shrunk, 0);
  for (const auto span : asked) EXPECT_TRUE(file->has(check::state_of(span, 0).key));
  EXPECT_TRUE(file->has(late.key));
  expect_sound(*file);
}

TEST(Budget, AStateThatIsMadeAgainIsWholeAgain) {
  const Folder folder;
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create, with_budget(kBudget));
  const auto book = put_text(*file, "book", story(0, 40));
  std::vector<Rep> states;
  for (std::size_t i = 1; i < book.spans.size(); ++i)
    states.push_back(check::state_of(book.spans[i], 200'000, i));
  const auto report = file->put(states, Admission::ahead);
  EXPECT_GT(report.stored, 10);
  EXPECT_GT(report.not_stored, 10);
  EXPECT_EQ(report.dropped, 0) << "nothing asked for these";
  EXPECT_EQ(report.obstacle, StoreReport::Obstacle::budget);
  EXPECT_EQ(file->usage().text_only_spans, report.not_stored);
  const auto& last = states.back();
  EXPECT_FALSE(file->has(last.key));
  file->touch(std::vector{last.key.span});
  EXPECT_EQ(file->put({&last, 1}, Admission::for_question).stored, 1);
  EXPECT_EQ(file->get(last.key)->blob, last.blob);
  const auto usage = file->usage();
  EXPECT_EQ(usage.text_only_spans + usage.spans_with_states, 40);
  expect_sound(*file);
}

TEST(Budget, WhatCannotFitAloneMovesNothing) {
  const Folder folder;
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create, with_budget(kBudget));
  const auto book = put_text(*file, "book", story(0, 10));
  const auto small = check::state_of(book.spans[1], 100'000);
  file->put({&small, 1}, Admission::ahead);
  const auto large = check::state_of(book.spans[2], kBudget);
  const auto report = file->put({&large, 1}, Admission::for_question);
  EXPECT_EQ(report.not_stored, 1);
  EXPECT_EQ(report.dropped, 0);
  EXPECT_EQ(report.obstacle, StoreReport::Obstacle::budget);
  EXPECT_FALSE(report.reason.empty());
  EXPECT_TRUE(file->has(small.key));
}

TEST(Budget, AStateAloneCanBeReplacedByItself) {
  const Folder folder;
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create, with_budget(3 << 19));
  const auto book = put_text(*file, "book", story(0, 3));
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const auto state = check::state_of(book.spans[1], 400'000, seed);
    ASSERT_EQ(file->put({&state, 1}, Admission::ahead).stored, 1) << seed;
    EXPECT_EQ(file->get(state.key)->blob, state.blob);
  }
  expect_sound(*file);
}

TEST(Budget, CanBeLoweredAndRaised) {
  const Folder folder;
  const auto path = folder / "a.mneme";
  const auto file = MemoryFile::open(path, Access::create, with_budget(16 << 20));
  const auto book = put_text(*file, "book", story(0, 60));
  std::vector<Rep> states;
  for (std::size_t i = 1; i < book.spans.size(); ++i)
    states.push_back(check::state_of(book.spans[i], 200'000, i));
  ASSERT_EQ(file->put(states, Admission::ahead).stored, 60);
  file->touch(std::vector{book.spans[7]});
  file->set_consolidate(halve, 2);
  const auto report = file->set_budget(2 << 20);
  EXPECT_GT(report.dropped, 30);
  auto usage = file->usage();
  EXPECT_LE(usage.state_page_bytes + usage.free_page_bytes, 2 << 20);
  EXPECT_LE(usage.file_bytes, (2 << 20) + 600'000) << "given back to the disk";
  EXPECT_TRUE(file->has(states[6].key)) << "the one that was asked for";
  expect_sound(*file);
  std::string message;
  EXPECT_EQ(error_of([&] { file->set_budget(1000); }, &message), Errc::invalid);
  EXPECT_NE(message.find("at least 1 MiB"), std::string::npos) << message;
  EXPECT_EQ(error_of([&] { MemoryFile::open(path, Access::read_only, with_budget(-1)); }),
            Errc::invalid);
  file->set_budget(16 << 20);
  EXPECT_EQ(file->put(states, Admission::ahead).stored, 60);
  EXPECT_EQ(file->usage().consolidated_spans, 0);
  expect_sound(*file);
}

TEST(Budget, PagesOfReplacedTextAreNotKeptBeyondIt) {
  const Folder folder;
  const auto file = MemoryFile::open(folder / "a.mneme", Access::create, with_budget(1 << 20));
  std::string big = check::noise(3'000'000, 3);
  for (auto& c : big) c = static_cast<char>('a' + static_cast<unsigned char>(c) % 26);
  for (std::size_t i = 1000; i < big.size(); i += 1000) big[i] = big[i + 1] = '\n';
  put_text(*file, "book", big);
  put_text(*file, "book", story(0, 3));
  const auto usage = file->usage();
  EXPECT_LE(usage.state_page_bytes + usage.free_page_bytes, 1 << 20);
  EXPECT_LT(usage.file_bytes, 2 << 20);
  expect_sound(*file);
}

TEST(Consolidation, TheDefaultOrder) {
  const auto policy = default_consolidation_policy();
  StateSummary never, old, often, recent;
  never.order = 9;
  old.asked = 1;
  old.asked_at = 100;
  often.asked = 20;
  often.asked_at = 50;
  recent.asked = 1;
  recent.asked_at = 200;
  EXPECT_TRUE(policy->less_useful(never, old));
  EXPECT_TRUE(policy->less_useful(old, recent));
  EXPECT_TRUE(policy->less_useful(recent, often));
  EXPECT_FALSE(policy->less_useful(often, never));
  auto later = never;
  later.order = 10;
  EXPECT_TRUE(policy->less_useful(never, later));
  EXPECT_FALSE(policy->less_useful(never, never));
  EXPECT_TRUE(policy->may_drop(never, Admission::for_question));
  EXPECT_FALSE(policy->may_drop(never, Admission::ahead));
  EXPECT_TRUE(policy->may_shrink(never, Admission::ahead));
  EXPECT_FALSE(policy->may_shrink(old, Admission::ahead));
}

}  // namespace
}  // namespace mneme
