// A decoding step in the middle of a text: what it needs to work with it has from the step before.
#include "mneme/core/registry.h"
#include "mneme/decode/sampler.h"
#include "mneme/kernels/page_view.h"
#include "mneme/kv/page_memory.h"
#include "mneme/kv/plan.h"
#include "mneme/layers/stored_weight.h"
#include "mneme/models/model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include "../stored_weights.h"
#include "counted.h"
#include <fmt/format.h>
#include <gtest/gtest.h>

namespace mneme {
namespace {

constexpr std::int64_t kVocabulary = 512;

/// A decoder of random weights, the matrices quantized as a model's file holds them.
struct QuantizedModel {
  Params params;
  std::unique_ptr<Model> model;

  explicit QuantizedModel(std::int64_t layers) {
    const auto spec = fmt::format(
        "decoder(vocabulary={}, model=128, layers={}, context=0, "
        "mixer=softmax(heads=4, kv_heads=2, head=32), feed_forward=glu(hidden=256))",
        kVocabulary, layers);
    Params fresh;
    (void)registry().make<Model>(spec, fresh);
    for (const auto& name : fresh.names()) {
      auto parameter = *fresh.find(name);
      if (const auto sizes = parameter.sizes(); sizes.size() == 2) {
        parameter = {};
        parameter.stored = std::make_shared<FileWeight>(
            check::random_weight(WeightType::q4_0, sizes[0], sizes[1], sizes[0] * 7 + sizes[1]));
      }
      params.set(name, std::move(parameter));
    }
    model = registry().make<Model>(spec, params);
  }
};

struct Steps {
  std::int64_t most = 0;   ///< allocations of a step that neither begins nor fills a page
  std::int64_t large = 0;  ///< large ones of all those steps
};

/// What 64 greedy steps allocate behind a prompt, once a page of steps has gone before.
Steps steady_steps(std::int64_t layers, const char* plan) {
  constexpr auto kPage = kernels::kPageEntries;
  const c10::NoGradGuard no_grad;
  const QuantizedModel made(layers);
  auto state = made.model->start(1);
  if (*plan) use_plan(state, std::make_shared<KvPlan>(parse_chain(plan)));
  const auto forward = [&](const at::Tensor& ids) {
    Batch batch;
    batch.ids = ids;
    return made.model->forward(batch, state).logits;
  };
  auto logits = forward(at::arange(2 * kPage).unsqueeze(0));
  Sampler sampler({});
  Steps out;
  for (std::int64_t i = 0; i < 2 * kPage; ++i) {
    const auto place = state.positions.front() % kPage;
    const bool turns_page = place == 0 || place == kPage - 1;
    const auto before = check::allocations();
    auto id = at::empty({1, 1}, at::kLong);
    *id.mutable_data_ptr<std::int64_t>() = sampler.sample(logits);
    logits = forward(id);
    const auto after = check::allocations();
    if (i < kPage || turns_page) continue;
    out.most = std::max(out.most, after.all - before.all);
    out.large += after.large - before.large;
  }
  return out;
}

class SteadyStep : public ::testing::TestWithParam<const char*> {};

TEST_P(SteadyStep, AllocatesNoNumbersAndNothingForALayer) {
  if (!check::counts_allocations()) GTEST_SKIP() << "allocations cannot be counted here";
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    const auto few = steady_steps(2, GetParam()), many = steady_steps(10, GetParam());
    EXPECT_EQ(few.large, 0) << threads << " threads";
    EXPECT_EQ(many.large, 0) << threads << " threads";
    // ATen's own for the token's id, position and logits; a layer has none.
    EXPECT_LE(few.most, 40) << threads << " threads";
    EXPECT_EQ(many.most, few.most) << threads << " threads: of eight more layers";
    // For those who run this program to report on it.
    ::testing::Test::RecordProperty("plan", GetParam());
    ::testing::Test::RecordProperty("allocations_of_a_token", fmt::format("{}", many.most));
  }
  at::set_num_threads(1);
}

INSTANTIATE_TEST_SUITE_P(Plans, SteadyStep,
                         ::testing::Values("", "quantize(bits=8)", "quantize(bits=4)",
                                           "window(sinks=4, size=100)",
                                           "window(sinks=4, size=100) | quantize(bits=4)",
                                           "quest(pages=1, skip_layers=0)"),
                         [](const auto& info) { return fmt::format("Plan{}", info.index); });

TEST(PageMemory, IsGivenBackWithoutAllocating) {
  if (!check::counts_allocations()) GTEST_SKIP() << "allocations cannot be counted here";
  constexpr std::int64_t kBytes = 4032, kPieces = 3000;  // of several blocks
  std::vector<std::shared_ptr<std::byte>> held;
  for (std::int64_t i = 0; i < kPieces; ++i) held.push_back(page_memory(kBytes));
  const auto before = check::allocations();
  for (std::size_t i = 0; i < held.size(); i += 2) held[i].reset();  // full blocks get room
  for (auto& piece : held) piece.reset();                            // and become empty
  EXPECT_EQ(check::allocations().all, before.all);
}

TEST(CountedAllocations, SeesThoseOfEveryKind) {
  if (!check::counts_allocations()) GTEST_SKIP() << "allocations cannot be counted here";
  const auto before = check::allocations();
  const auto tensor = at::empty({1000});
  auto numbers = std::make_unique<std::vector<double>>(500);
  const auto after = check::allocations();
  EXPECT_GE(after.all - before.all, 4);
  EXPECT_EQ(after.large - before.large, 2);
  EXPECT_EQ(numbers->size() + static_cast<std::size_t>(tensor.numel()), 1500U);
}

}  // namespace
}  // namespace mneme
