// What `bench speed` is made of: lists in options, turns, made-up text, other engines' processes.
#include "bench/speed/turns.h"

#include "mneme/core/error.h"

#include "bench/list.h"
#include "bench/machine/limits.h"
#include "bench/peers/peer.h"
#include "bench/speed/sample_text.h"
#include "tests/tensor_check.h"
#include <gtest/gtest.h>
#include <string>
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
  EXPECT_GT(read_bandwidth(), 1e8);
  EXPECT_GT(product_rate(at::kFloat), 1e8);
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
