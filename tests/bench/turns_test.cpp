// What `bench speed` is made of: lists in options, turns, made-up text, the machine's limits, files to be written, other
// engines' processes.
#include "bench/speed/turns.h"

#include "mneme/core/error.h"
#include "mneme/kernels/level.h"

#include "bench/list.h"
#include "bench/machine/limits.h"
#include "bench/peers/peer.h"
#include "bench/scratch_folder.h"
#include "bench/speed/sample_text.h"
#include "bench/writable.h"
#include "tests/tensor_check.h"
#include <algorithm>
#include <filesystem>
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
  const auto bandwidths = read_bandwidths();
  ASSERT_FALSE(bandwidths.empty());
  for (const auto& each : bandwidths) {
    EXPECT_GT(each.per_s, 1e8) << each.by;
    EXPECT_GE(best_of(bandwidths).per_s, each.per_s) << each.by;
  }
  const MatrixShape shapes[] = {{192, 576}, {50, 33}};  // the second is of no whole blocks
  const auto products = product_limits(shapes);
  EXPECT_GT(products.f32.per_s, 1e8);
  EXPECT_EQ(products.bf16.per_s > 0, kernels::has_bf16_products());
  EXPECT_GE(products.best.per_s, std::max(products.f32.per_s, products.bf16.per_s));
  EXPECT_FALSE(products.best.by.empty());
  EXPECT_EQ(best_of({}).per_s, 0);
  EXPECT_GT(available_memory(), 1 << 20);
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
