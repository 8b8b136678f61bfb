#include "mneme/core/unwritten.h"

#include <ATen/ATen.h>

#include <gtest/gtest.h>
#include <optional>
#include <thread>
#include <vector>

namespace mneme {
namespace {

TEST(Unwritten, TensorsThatLiveShareNoMemory) {
  std::vector<at::Tensor> held;
  for (int round = 0; round < 3; ++round) {
    for (std::int64_t n = 1; n < 40'000; n = n * 3 / 2 + 1) {
      held.emplace_back(unwritten({n, 2}));
      held.back().fill_(static_cast<double>(held.size()));
    }
    for (std::size_t i = 0; i < held.size(); ++i)
      EXPECT_TRUE(held[i].eq(static_cast<double>(i + 1)).all().item<bool>()) << i;
    if (round == 1) held.clear();
  }
}

TEST(Unwritten, WhatWasGivenBackLastComesFirst) {
  std::optional<at::Tensor> first(unwritten({300})), second(unwritten({400}));
  const auto *a = first->const_data_ptr(), *b = second->const_data_ptr();
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a) % 64, 0U);
  first.reset();
  second.reset();
  const at::Tensor third = unwritten({257}), fourth = unwritten({512});
  EXPECT_EQ(third.const_data_ptr(), b);
  EXPECT_EQ(fourth.const_data_ptr(), a);
}

TEST(Unwritten, TensorsOutliveTheirThreadAndEndOnOthers) {
  at::Tensor made;
  std::thread([&] { made = at::Tensor(unwritten({1000})).fill_(3); }).join();
  EXPECT_EQ(made.sum().item<float>(), 3000);
  std::thread([moved = std::move(made)]() mutable { moved.reset(); }).join();
}

TEST(Unwritten, GrowsAsOtherTensorsDo) {
  at::Tensor x = unwritten({200});
  x.fill_(2);
  x.resize_({50'000});
  EXPECT_EQ(x.narrow(0, 0, 200).sum().item<float>(), 400);
  EXPECT_EQ(at::Tensor(unwritten({0, 5})).numel(), 0);
}

}  // namespace
}  // namespace mneme
