// Prompts cut by evaluator heads: scores against sums written out over the whole model, and the rules of pooling and keeping.
#include "mneme/probes/ehpc.h"

#include "mneme/core/taps.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "../bench/kv_models.h"
#include "../tensor_check.h"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

namespace mneme {
namespace {

TEST(Evaluators, AreTheBestHeadsOfTheBestLayer) {
  const auto scores = at::tensor({0.9, 0.0, 0.0, 0.2, 0.4, 0.4, 0.1, 0.1, 0.1}).view({3, 3});
  auto found = evaluators(scores, 2);
  EXPECT_EQ(found.layer, 1) << "not the layer of the best head";
  EXPECT_EQ(found.heads, (std::vector<std::int64_t>{1, 2}));
  found = evaluators(scores, 1);
  EXPECT_EQ(found.heads, (std::vector<std::int64_t>{1}));
  EXPECT_EQ(evaluators(scores, 9).heads.size(), 3u);
  check::expect_error(Errc::invalid, "0 heads", [&] { (void)evaluators(scores, 0); });
}

TEST(Pooled, IsTheMeanOfNeighboursCentredAndWholeAtTheEnds) {
  const std::int64_t n = 50;
  const auto x = check::normal({2, n}, 1, at::kDouble);
  for (const std::int64_t pool : {1, 2, 3, 5, 8, 32, 120}) {
    const auto got = pooled(x, pool);
    const auto half = pool / 2;
    for (std::int64_t r = 0; r < 2; ++r) {
      for (std::int64_t j = 0; j < n; ++j) {
        double sum = 0, weight = 0;
        for (auto i = j - half; i <= j + half; ++i) {
          if (i < 0 || i >= n) continue;
          const double w = pool % 2 == 0 && std::abs(i - j) == half ? 0.5 : 1;
          sum += w * x[r][i].item<double>();
          weight += w;
        }
        if (pool > 1) {
          EXPECT_NEAR(got[r][j].item<double>(), sum / weight, 1e-10) << pool << " at " << j;
        }
      }
    }
    EXPECT_TRUE(check::close(pooled(at::full({1, n}, 0.7, at::kDouble), pool),
                             at::full({1, n}, 0.7, at::kDouble), 1e-12))
        << "a constant row stays constant, also at the ends";
    // What is symmetric stays so: an even pool does not lean to a side.
    const auto even = x + x.flip(1);
    EXPECT_TRUE(check::close(pooled(even, pool), pooled(even, pool).flip(1), 1e-12));
  }
}

TEST(KeptPlaces, AreTheFirstTheLastAndTheBest) {
  const auto scores = at::tensor({9.0, 1.0, 5.0, 2.0, 5.0, 0.0, 7.0, 0.0, 0.0});
  EXPECT_EQ(kept_places(scores, 5, 2), (std::vector<std::int64_t>{0, 2, 6, 7, 8}));
  EXPECT_EQ(kept_places(scores, 6, 2), (std::vector<std::int64_t>{0, 2, 4, 6, 7, 8}));
  EXPECT_EQ(kept_places(scores, 3, 2), (std::vector<std::int64_t>{0, 7, 8}));
  EXPECT_EQ(kept_places(scores, 9, 2).size(), 9u);
  EXPECT_EQ(kept_places(scores, 100, 2).size(), 9u);
  check::expect_error(Errc::invalid, "2 tokens", [&] { (void)kept_places(scores, 2, 2); });
}

TEST(PromptCompressor, ScoresAreThoseOfTheWholeModelsAttention) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto ids = check::letter_ids(90, 5);
  const auto shape = attention_of(model);
  const EvaluatorHeads judges{1, {0, 3}};
  const PromptCompressor compressor(model, judges, {6, 1});
  const auto got = compressor.scores(ids);
  // Weights of the whole model's second layer, written out in double precision.
  at::Tensor q, k;
  watch_attention(
      model, ids, 1000, [](std::int64_t) {},
      [&](std::int64_t layer, std::int64_t, const at::Tensor& queries, const at::Tensor& keys) {
        if (layer != 1) return;
        const auto places = at::arange(90, at::kLong);
        q = turned(shape, queries, places).to(at::kDouble);
        k = turned(shape, keys, places).to(at::kDouble);
      });
  auto want = at::zeros({90}, at::kDouble);
  for (const std::int64_t h : {0, 3}) {
    for (std::int64_t t = 84; t < 90; ++t) {
      const auto scores = at::mv(k[h / 2].narrow(0, 0, t + 1), q[h][t]) / std::sqrt(8.0);
      want.narrow(0, 0, t + 1) += scores.softmax(0) / 6;
    }
  }
  want[0] = 0;
  EXPECT_TRUE(check::close(got, want, 1e-5));
  const PromptCompressor pooling(model, judges, {6, 4});
  EXPECT_TRUE(check::close(pooling.scores(ids), pooled(want.unsqueeze(0), 4)[0], 1e-5));
}

TEST(PromptCompressor, RunsTheFirstLayersAsTheWholeModelDoes) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto ids = check::letter_ids(60, 5);
  // All that it looks at are queries and keys of a layer: the same bits whether the layers behind it run or not.
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    std::vector<at::Tensor> caught;
    for (const std::int64_t to : {layer + 1, std::int64_t{-1}}) {
      Taps taps;
      for (const auto* point : {"q", "k"}) {
        taps.add("layers." + std::to_string(layer) + ".attn." + point,
                 [&](std::string_view, const at::Tensor& x) {
                   caught.push_back(x.clone());
                   return x;
                 });
      }
      Batch batch;
      batch.ids = at::tensor(at::ArrayRef<std::int32_t>(ids), at::kInt).to(at::kLong).unsqueeze(0);
      batch.to_layer = to;
      batch.logits_at = LogitsAt::none;
      batch.compute = Compute::f32;
      batch.taps = &taps;
      auto state = model.model->start(1);
      (void)model.model->forward(batch, state);
    }
    ASSERT_EQ(caught.size(), 4u);
    EXPECT_TRUE(caught[0].equal(caught[2]));
    EXPECT_TRUE(caught[1].equal(caught[3]));
  }
}

TEST(PromptCompressor, KeepsIdsInOrderAndAllOfThemWhereTheyFit) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto ids = check::letter_ids(90, 5);
  const PromptCompressor compressor(model, {0, {1, 2}}, {8, 6});
  EXPECT_EQ(compressor.compress(ids, 90), ids);
  EXPECT_EQ(compressor.compress(ids, 1000), ids);
  const auto some = compressor.compress(ids, 30);
  ASSERT_EQ(some.size(), 30u);
  EXPECT_EQ(some.front(), ids.front());
  EXPECT_TRUE(std::equal(some.end() - 8, some.end(), ids.end() - 8));
  std::size_t at = 0;
  for (const auto id : some) {
    while (at < ids.size() && ids[at] != id) ++at;
    ASSERT_LT(at++, ids.size()) << "not in the order of the text";
  }
  check::expect_error(Errc::invalid, "8 tokens", [&] { (void)compressor.compress(ids, 8); });
}

TEST(PromptCompressor, HeadsThatThereAreNotAreRefused) {
  const auto model = check::letter_model();
  check::expect_error(Errc::invalid, "2 layers",
                      [&] { const PromptCompressor none(model, {2, {0}}); });
  check::expect_error(Errc::invalid, "4 heads",
                      [&] { const PromptCompressor none(model, {0, {4}}); });
  check::expect_error(Errc::invalid, "4 heads",
                      [&] { const PromptCompressor none(model, {0, {}}); });
}

}  // namespace
}  // namespace mneme
