// What `bench speed` is made of: lists in options, turns, made-up text, the machine's limits and what else it does, files
// to be written, other engines' processes.
#include "bench/speed/turns.h"

#include "mneme/core/error.h"
#include "mneme/kernels/level.h"

#include "bench/list.h"
#include "bench/machine/limits.h"
#include "bench/machine/other_work.h"
#include "bench/peers/peer.h"
#include "bench/scratch_folder.h"
#include "bench/speed/sample_text.h"
#include "bench/writable.h"
#include "tests/tensor_check.h"
#include <algorithm>
#include <csignal>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace mneme::bench {
namespace {

TEST(List, PartsWithoutBlanksAndEmptyOnes) {
  EXPECT_EQ(listed(" a, b ,,c"), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(listed("a;b", ';'), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(listed("").empty());
  EXPECT_EQ(listed_numbers("depth", "128, 7", 1), (std::vector<std::int64_t>{128, 7}));
}

TEST(List, WhatIsNoNumberIsNamed) {
  for (const auto* text : {"12x", "0", "-3", "1.5", "99999999999999999999"}) {
    check::expect_error(Errc::usage, text, [&] { (void)listed_numbers("depth", text, 1); });
  }
  check::expect_error(Errc::usage, "--depth", [] { (void)listed_numbers("depth", " , ", 1); });
}

TEST(Turns, EachSideIsWarmedOnceAndThenAllTakeTurns) {
  std::string order;
  double next[] = {9, 1, 3, 2};  // of the first side, the warming one first
  std::size_t at = 0;
  int asked = 0;
  const std::vector<std::function<double()>> sides = {[&] {
                                                        order += 'a';
                                                        return next[at++];
                                                      },
                                                      [&] {
                                                        order += 'b';
                                                        return 5.0;
                                                      }};
  const auto timings = in_turns(sides, 3, [&] { ++asked; });
  EXPECT_EQ(order, "abababab");
  EXPECT_EQ(asked, 8);
  EXPECT_EQ(timings.at(0).median, 2);
  EXPECT_EQ(timings.at(0).least, 1);
  EXPECT_EQ(timings.at(0).most, 3);
  EXPECT_EQ(timings.at(0).rounds, (std::vector<double>{1, 3, 2}));
  EXPECT_EQ(timings.at(1).median, 5);
  EXPECT_EQ(timing_of({4, 1}).median, 2.5);
}

TEST(SampleText, IsTheSameEveryTimeAndMadeOfParagraphs) {
  const auto text = sample_text(20000);
  EXPECT_GE(text.size(), 20000U);
  EXPECT_LT(text.size(), 24000U);
  EXPECT_EQ(text, sample_text(20000));
  EXPECT_NE(text, sample_text(20000, 2));
  EXPECT_NE(text.find(".\n\n"), std::string::npos);
  EXPECT_TRUE(text.starts_with(text[0]) && text[0] >= 'A' && text[0] <= 'Z');
}

TEST(Limits, AreThoseOfAMachine) {
  const auto bandwidth = read_bandwidth(std::int64_t{48} << 20);
  EXPECT_GT(bandwidth.per_s, 1e8);
  EXPECT_EQ(bandwidth.by, bandwidth.way.told());
  MemoryReading reading(bandwidth.way, std::int64_t{48} << 20);
  EXPECT_EQ(reading.bytes(), std::int64_t{48} << 20);
  EXPECT_GT(static_cast<double>(reading.bytes()) / reading.pass(), 1e8);
  EXPECT_GT(MemoryReading(bandwidth.way, 1).bytes(), 1 << 20) << "too few to be timed";
  const MatrixShape shapes[] = {{192, 576}, {50, 33}};  // the second is of no whole blocks
  const auto products = product_limits(shapes);
  EXPECT_GT(products.f32.per_s, 1e8);
  EXPECT_EQ(products.bf16.per_s > 0, kernels::has_bf16_products());
  EXPECT_GE(products.best.per_s, std::max(products.f32.per_s, products.bf16.per_s));
  EXPECT_FALSE(products.best.by.empty());
  EXPECT_EQ(best_of({}).per_s, 0);
  EXPECT_GT(available_memory(), 1 << 20);
}

void work_for_half_a_second() {
  const auto began = std::clock();
  while (std::clock() - began < CLOCKS_PER_SEC / 2) {
  }
}

TEST(OtherWork, IsNotOurOwnNorThatOfChildrenThatAreNamed) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // whatever becomes of us
    for (volatile bool on = true; on;) {
    }
  }
  ASSERT_GT(child, 0);
  const OtherWork without({child}), with;
  work_for_half_a_second();
  const double others = without.processors(), all = with.processors();
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_GE(others, 0);
  EXPECT_GT(all, others) << "what the child does is other work where it is not named";
}

TEST(Writable, SaysWhyAFileCannotBeWritten) {
  const ScratchFolder folder;
  EXPECT_NO_THROW(check_writable(""));
  EXPECT_NO_THROW(check_writable(folder.path() / "rows.jsonl"));
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "rows.jsonl")) << "leaves nothing behind";
  EXPECT_NO_THROW(check_writable("rows.jsonl")) << "the folder where it runs";
  check::expect_error(Errc::io, "there is no folder",
                      [&] { check_writable(folder.path() / "missing" / "rows.jsonl"); });
  check::expect_error(Errc::io, "it is a folder", [&] { check_writable(folder.path()); });
}

TEST(Peer, IsEndedWhereWaitingForItIs) {
  struct Stopped {};
  // `sleep` stands for an interpreter whose program is at work.
  const ScratchFolder folder;
  const auto python = folder.path() / "python";
  const auto pid = folder.path() / "pid";
  std::ofstream(python) << "#!/bin/sh\necho $$ > " << pid.string() << "\nexec sleep 600\n";
  std::filesystem::permissions(python, std::filesystem::perms::owner_all);
  int number = 0;
  EXPECT_THROW(Peer(python, "protocol.py", {},
                    [&] {
                      if (std::ifstream(pid) >> number) throw Stopped();
                    }),
               Stopped);
  EXPECT_GT(number, 0);
  EXPECT_EQ(::kill(number, 0), -1) << "still runs";
}

TEST(Peer, SaysWhyItCannotBeAsked) {
  check::expect_error(Errc::not_found, "--python",
                      [] { Peer peer("/no/such/python", "llama_cpp_peer.py", {}); });
  // The part that the peers share says nothing by itself.
  if (std::filesystem::exists(Peer::default_python())) {
    check::expect_error(Errc::io, "ended without an answer",
                        [] { Peer peer(Peer::default_python(), "protocol.py", {}); });
  }
}

}  // namespace
}  // namespace mneme::bench
