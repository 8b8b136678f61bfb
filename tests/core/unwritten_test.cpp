#include "mneme/core/unwritten.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

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

TEST(Unwritten, ATensorThatNobodyHoldsComesWhole) {
  std::optional<at::Tensor> first(unwritten({3, 100}));
  const auto* tensor = first->unsafeGetTensorImpl();
  first->unsafeGetTensorImpl()->set_sizes_contiguous({300});
  first.reset();
  const at::Tensor second = unwritten({2, 5, 30});
  EXPECT_EQ(second.unsafeGetTensorImpl(), tensor);
  EXPECT_EQ(second.sizes(), at::IntArrayRef({2, 5, 30}));
  EXPECT_TRUE(second.is_contiguous());
}

TEST(Unwritten, WhatSomebodyStillReadsIsNotGivenOut) {
  at::Tensor view, part;
  {
    at::Tensor x = unwritten({500});
    x.fill_(1);
    view = x.view({5, 100});
    at::Tensor y = unwritten({600});
    y.fill_(2);
    part = y.detach().narrow(0, 100, 10);
  }
  std::vector<at::Tensor> others;
  for (int i = 0; i < 20; ++i) others.push_back(at::Tensor(unwritten({600})).fill_(3));
  EXPECT_TRUE(view.eq(1).all().item<bool>());
  EXPECT_TRUE(part.eq(2).all().item<bool>());
}

TEST(Unwritten, GradientsAndOtherMemoryStayWithWhoRecordedThem) {
  {
    at::Tensor x = unwritten({700});
    x.fill_(1).set_requires_grad(true);
  }
  EXPECT_FALSE(at::Tensor(unwritten({700})).requires_grad());
  {
    at::Tensor x = unwritten({700});
    x.set_data(at::ones({700}, at::kDouble));
  }
  EXPECT_EQ(at::Tensor(unwritten({700})).scalar_type(), at::kFloat);
  {
    const c10::InferenceMode inference;
    EXPECT_TRUE(at::Tensor(unwritten({700})).is_inference());
  }
  EXPECT_FALSE(at::Tensor(unwritten({700})).is_inference());
}

TEST(Unwritten, IsHeldAloneWhereOnlyItsCallerHoldsIt) {
  const auto count = [](const at::Tensor& x) { return held_alone(x); };
  at::Tensor small = unwritten({300}), large = unwritten({1 << 20}), other = at::empty({300});
  for (const auto* x : {&small, &large, &other}) {
    EXPECT_TRUE(count(*x));
    const at::Tensor copy = *x;
    EXPECT_FALSE(count(*x));
  }
  std::thread([moved = std::move(small)] {
    EXPECT_FALSE(held_alone(moved)) << "the thread that made it keeps it";
  }).join();
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
