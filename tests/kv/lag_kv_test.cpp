// lag_kv against its equations over all partitions at once, on layers made up here.
#include <ATen/ATen.h>

#include "../tensor_check.h"
#include "made_layer.h"
#include <gtest/gtest.h>

namespace mneme {
namespace {

using namespace check;

/// The information [P-1,L] of partitions [P,L,d], all but the last.
at::Tensor information(const at::Tensor& parts) {
  const auto P = parts.size(0);
  const auto next = parts.narrow(0, 1, P - 1);
  const auto least = next.amin({1}, true), most = next.amax({1}, true);
  return ((parts.narrow(0, 0, P - 1) - least) / (most - least)).std(at::IntArrayRef{2}, true);
}

TEST(LagKv, IsTheInformationThatTheNextPartitionLeaves) {
  constexpr std::int64_t kSinks = 3, kLag = 7, kParts = 4, kRest = 5;
  const auto layer = whole(kSinks + kParts * kLag + kRest, 1);
  const auto plain = scores("lag_kv(lag=7, sinks=3, ranked=false)", layer),
             ranked = scores("lag_kv(lag=7, sinks=3)", layer);
  for (std::size_t h = 0; h < 2; ++h) {
    const auto parts = [&](const at::Tensor& x) {
      return x.to(at::kDouble).narrow(0, kSinks, kParts * kLag).view({kParts, kLag, Made::kWidth});
    };
    const auto want =
        (information(parts(layer.k[h])).softmax(1) + information(parts(layer.v[h])).softmax(1)) / 2;
    const auto around = [&](const at::Tensor& between) {
      return numbers(at::cat({at::ones({kSinks}, at::kDouble), between.flatten(),
                              at::ones({kLag + kRest}, at::kDouble)}));
    };
    expect_near(plain[h], around(want));
    // How many of its partition an entry outdoes.
    expect_near(ranked[h],
                around((want.unsqueeze(2) > want.unsqueeze(1)).sum(2).to(at::kDouble) / kLag));
  }
}

TEST(LagKv, NothingIsToldApartBeforeTwoPartitionsAreWhole) {
  for (const std::int64_t n : {1, 2, 3, 16}) {
    for (const auto& x : scores("lag_kv(lag=7, sinks=3)", whole(n, 1)))
      EXPECT_EQ(numbers(x), Numbers(static_cast<std::size_t>(n), 1)) << n << " tokens";
  }
  EXPECT_NE(numbers(scores("lag_kv(lag=7, sinks=3)", whole(17, 1))[0]), Numbers(17, 1));
}

TEST(LagKv, WhatWasCutIsJudgedByTheTokensThatAreLeft) {
  // Partitions of 4 behind one sink: 1-4 | 5-8, of which nothing is left | 9-12 | 13-16 | 17, not whole.
  const Made layer({{0, 1, 3, 4, 9, 12, 13, 14, 17}}, 1, 5);
  const auto got = scores("lag_kv(lag=4, sinks=1, ranked=false)", layer)[0];
  const auto judged = [](const at::Tensor& x, std::int64_t begin, std::int64_t n, std::int64_t next,
                         std::int64_t of_next) {
    const auto range = x.narrow(0, next, of_next);
    const auto least = range.amin(0), most = range.amax(0);
    return ((x.narrow(0, begin, n) - least) / (most - least))
        .std(at::IntArrayRef{1}, true)
        .softmax(0);
  };
  const auto mean = [&](std::int64_t begin, std::int64_t n, std::int64_t next, std::int64_t m) {
    return (judged(layer.k[0], begin, n, next, m) + judged(layer.v[0], begin, n, next, m)) / 2;
  };
  expect_near(got,
              numbers(at::cat({at::ones({1}), mean(1, 3, 4, 2), mean(4, 2, 6, 2), at::ones({3})})));
}

TEST(LagKv, AChannelThatDoesNotVarySaysNothing) {
  auto layer = whole(12, 1);
  auto without = whole(12, 1);
  for (auto* x : {&layer.k[0], &layer.v[0]}) x->narrow(0, 6, 6).select(1, 2).fill_(0.5);
  for (auto* x : {&without.k[0], &without.v[0]}) {
    x->select(1, 2).fill_(-1);  // relative to a range of [-1, 1]: 0
    x->narrow(0, 11, 1).select(1, 2).fill_(1);
  }
  const std::string spec = "lag_kv(lag=6, sinks=0, ranked=false)";
  expect_near(scores(spec, layer)[0], numbers(scores(spec, without)[0]));
}

}  // namespace
}  // namespace mneme
