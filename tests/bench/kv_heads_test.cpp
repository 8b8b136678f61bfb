// What suites find out about single heads: attention of a watched text, the rules that heads keep by, and variance along
// axes of other texts.
#include "mneme/core/registry.h"
#include "mneme/kv/head_profile.h"
#include "mneme/probes/needles.h"

#include <c10/core/InferenceMode.h>

#include "../tensor_check.h"
#include "bench/kv/calibrated.h"
#include "bench/kv/explained.h"
#include "bench/kv/head_rules.h"
#include "bench/kv/watched_layer.h"
#include "kv_models.h"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

namespace mneme::bench {
namespace {

double at_of(const at::Tensor& x, at::IntArrayRef at) {
  auto y = x;
  for (const auto i : at) y = y.select(0, i);
  return y.item<double>();
}

/// Weights [T][T] of one query head by the definition, in double.
std::vector<std::vector<double>> weights_of(const at::Tensor& q, const at::Tensor& k) {
  const auto T = q.size(0), d = q.size(1);
  std::vector<std::vector<double>> out;
  for (std::int64_t i = 0; i < T; ++i) {
    auto& row = out.emplace_back(static_cast<std::size_t>(T), 0.0);
    double sum = 0;
    for (std::int64_t j = 0; j <= i; ++j) {
      double product = 0;
      for (std::int64_t c = 0; c < d; ++c) product += at_of(q, {i, c}) * at_of(k, {j, c});
      row[static_cast<std::size_t>(j)] = std::exp(product / std::sqrt(static_cast<double>(d)));
      sum += row[static_cast<std::size_t>(j)];
    }
    for (auto& weight : row) weight /= sum;
  }
  return out;
}

TEST(WatchedLayer, WeightsAreThoseOfTheDefinition) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto shape = attention_of(model);
  constexpr std::int64_t kTokens = 21, kWindow = 5;
  const auto ids = check::letter_ids(kTokens, 3);
  std::vector<at::Tensor> queries, keys;
  const auto places = at::arange(kTokens, at::kLong);
  watch_attention(
      model, ids, kTokens, [](std::int64_t) {},
      [&](std::int64_t, std::int64_t, const at::Tensor& q, const at::Tensor& k) {
        queries.push_back(turned(shape, q, places).clone());
        keys.push_back(turned(shape, k, places).clone());
      });
  std::size_t layers = 0;
  watch_layers(
      model, shape, ids, kWindow, [] {},
      [&](const WatchedLayer& layer) {
        const auto &q = queries[layers], &k = keys[layers];
        ASSERT_EQ(layer.layer, static_cast<std::int64_t>(layers));
        ASSERT_EQ(layer.group * layer.heads, shape.heads);
        for (std::int64_t h = 0; h < layer.heads; ++h) {
          std::vector<double> mean(kTokens, 0);
          for (std::int64_t g = 0; g < layer.group; ++g) {
            const auto weights = weights_of(q[h * layer.group + g], k[h]);
            for (std::int64_t j = 0; j < kTokens; ++j) {
              double sum = 0;
              for (const auto& row : weights) sum += row[static_cast<std::size_t>(j)];
              EXPECT_NEAR(at_of(layer.column_sums(h), {g, j}), sum, 1e-4);
              mean[static_cast<std::size_t>(j)] +=
                  sum / static_cast<double>(kTokens - j) / static_cast<double>(layer.group);
              for (std::int64_t i = 0; i < 3; ++i)
                EXPECT_NEAR(
                    at_of(layer.window_weights(h, 3), {g, i, j}),
                    weights[static_cast<std::size_t>(kTokens - 3 + i)][static_cast<std::size_t>(j)],
                    1e-5);
            }
          }
          for (std::int64_t j = 0; j < kTokens; ++j)
            EXPECT_NEAR(at_of(layer.mean_attention(h), {j}), mean[static_cast<std::size_t>(j)],
                        1e-5);
          EXPECT_EQ(layer.token_ids(h)[7].item<std::int64_t>(), ids[7]);
        }
        EXPECT_EQ(layer.query_positions(), (std::vector<std::int64_t>{16, 17, 18, 19, 20}));
        ++layers;
      });
  EXPECT_EQ(static_cast<std::int64_t>(layers), shape.layers);
}

TEST(HeadRules, EachIsKnownByWhatItKeeps) {
  RuleSettings settings;
  settings.frequent = 0.2;
  settings.local = 0.3;
  settings.special = {9};
  settings.punctuation = {5};
  const std::vector<std::int64_t> ids{7, 5, 1, 2, 5, 9, 3, 8, 6, 4};
  const auto rule = [&](std::initializer_list<std::size_t> kept) {
    std::vector<bool> all(ids.size());
    for (const auto j : kept) all[j] = true;
    return rule_of(all, ids, settings);
  };
  EXPECT_EQ(rule({0, 5}), HeadRule::special);
  EXPECT_EQ(rule({0, 1, 4, 5}), HeadRule::punctuation);
  EXPECT_EQ(rule({0, 1, 3, 4, 5, 8}), HeadRule::frequent);
  EXPECT_EQ(rule({0, 1, 3, 4, 5, 7, 8, 9}), HeadRule::local);
  EXPECT_EQ(rule({0, 1, 2, 3, 4, 5, 6, 7, 8, 9}), HeadRule::everything);
  settings.special.clear();
  EXPECT_EQ(rule({0}), HeadRule::special) << "the first token alone";
}

TEST(HeadRules, TheMechanismKeepsByThem) {
  const auto model = check::letter_model();
  const auto shape = attention_of(model);
  const auto rules = rules_of(*model.tokenizer);
  std::string marks;
  for (const auto id : rules.punctuation)
    marks += model.tokenizer->token_bytes(static_cast<std::int32_t>(id));
  EXPECT_EQ(marks, ".,;:!?'-()");
  EXPECT_TRUE(rules.special.empty());
  const auto ids = check::letter_ids(60, 5);
  // What must be recovered decides: nothing takes the smallest rule, everything the largest.
  for (const auto& [recover, wanted] :
       {std::pair{0.0, HeadRule::special}, std::pair{1.0, HeadRule::everything}}) {
    const auto stage = registry().make<KvStage>(fastgen_spec(rules, recover));
    std::size_t heads = 0;
    watch_layers(
        model, shape, ids, 64, [] {},
        [&](const WatchedLayer& layer) {
          for (const auto& score : dynamic_cast<const ScoreStage&>(*stage).score(layer)) {
            std::vector<bool> kept;
            for (std::int64_t j = 0; j < 60; ++j)
              kept.push_back(std::isfinite(score.const_data_ptr<float>()[j]));
            EXPECT_EQ(rule_of(kept, std::vector<std::int64_t>(ids.begin(), ids.end()), rules),
                      wanted);
            ++heads;
          }
        });
    EXPECT_EQ(static_cast<std::int64_t>(heads), shape.layers * shape.kv_heads);
  }
}

TEST(HeadRules, AHeadWithEqualRulesIsStable) {
  using enum HeadRule;
  EXPECT_EQ(stable_share({{local, special}, {local, special}}), 1);
  EXPECT_EQ(stable_share({{local, special}, {special, local}}), 0);
  // Texts are compared with their partners alone.
  EXPECT_EQ(stable_share(
                {{local, special}, {local, frequent}, {frequent, frequent}, {frequent, frequent}}),
            0.75);
}

TEST(Explained, VarianceAlongTheFirstAxes) {
  const auto C = at::diag(at::tensor({4.0, 3.0, 2.0, 1.0})).unsqueeze(0).repeat({2, 1, 1});
  auto P = at::zeros({2, 4, 4}, at::kDouble);
  const std::vector<std::vector<std::int64_t>> orders{{1, 0, 3, 2}, {0, 1, 2, 3}};
  for (std::int64_t h = 0; h < 2; ++h)
    for (std::int64_t c = 0; c < 4; ++c)
      P[h][orders[static_cast<std::size_t>(h)][static_cast<std::size_t>(c)]][c] = 1;
  const auto one = explained_share(C, P, at::tensor({1, 1}, at::kLong)),
             more = explained_share(C, P, at::tensor({3, 2}, at::kLong)),
             all = explained_share(C, P, at::tensor({4, 4}, at::kLong));
  EXPECT_NEAR(at_of(one, {0}), 0.3, 1e-12);
  EXPECT_NEAR(at_of(one, {1}), 0.4, 1e-12);
  EXPECT_NEAR(at_of(more, {0}), 0.8, 1e-12);
  EXPECT_NEAR(at_of(more, {1}), 0.7, 1e-12);
  EXPECT_NEAR(at_of(all, {0}), 1, 1e-12);
  // Turned by 45 degrees within the first two channels: both axes have (4 + 3) / 2 of 10.
  const double s = std::sqrt(0.5);
  const auto turned_axes = at::eye(4, at::kDouble).unsqueeze(0).repeat({2, 1, 1});
  for (std::int64_t h = 0; h < 2; ++h) {
    turned_axes[h][0][0] = turned_axes[h][1][0] = turned_axes[h][1][1] = s;
    turned_axes[h][0][1] = -s;
  }
  EXPECT_NEAR(at_of(explained_share(C, turned_axes, at::tensor({1, 2}, at::kLong)), {0}), 0.35,
              1e-12);
}

TEST(Calibrated, NumbersAreMeasuredHereAndServeStages) {
  const auto model = check::letter_model();
  const auto heads = measure_heads(model, "qfilter(tokens=200, positions=200)", "", 200, 1, [] {});
  EXPECT_EQ(heads.source, "made up");
  const auto shape = attention_of(model);
  EXPECT_EQ(heads.profile->find("qfilter").sizes(),
            (at::IntArrayRef{shape.layers, shape.kv_heads, shape.width}));
  EXPECT_EQ(heads.profile->model_digest, model.digest);
  const auto pipeline = calibrated_pipeline("qfilter | keep(entries=40)", heads.profile);
  EXPECT_TRUE(pipeline.plan->ready());
  EXPECT_EQ(pipeline.plan->max_entries(), 40);
  check::expect_error(Errc::usage, "mneme calibrate",
                      [] { (void)calibrated_pipeline("qfilter | keep(entries=40)", nullptr); });
}

}  // namespace
}  // namespace mneme::bench
