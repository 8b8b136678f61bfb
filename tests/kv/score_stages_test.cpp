// Stages that score, spread and merge, each against a literal loop over a layer made up here; then in plans on a small
// random decoder.
#include "mneme/core/registry.h"
#include "mneme/core/taps.h"
#include "mneme/kv/head_profile.h"
#include "mneme/kv/layer_view.h"
#include "mneme/kv/plan.h"
#include "mneme/mixers/kv_store.h"
#include "mneme/models/prepare.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "../tensor_check.h"
#include "../tiny_models.h"
#include "made_layer.h"
#include <algorithm>
#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <limits>
#include <map>
#include <numeric>

namespace mneme {

namespace mechanisms::witness {
std::function<void(const LayerView&)>& told();
}

namespace {

using namespace check;

/// What query heads make of an entry, as `reduce` says.
double reduced(const Numbers& x, const std::string& how) {
  if (how == "max") return *std::max_element(x.begin(), x.end());
  const auto sum = std::accumulate(x.begin(), x.end(), 0.0);
  return how == "sum" ? sum : sum / static_cast<double>(x.size());
}

const std::vector<std::string> kReductions{"mean", "max", "sum"};

// ---- scores ----

TEST(RandomScore, DependsOnTheTokenAlone) {
  const auto all = whole(40, 1);
  const auto lots = scores("random(seed=5)", all);
  const Made some({{3, 8, 9, 39}, {0, 39}}, 1, 9);
  const auto of_some = scores("random(seed=5)", some);
  EXPECT_EQ(numbers(of_some[0]), numbers(lots[0].index_select(0, at::tensor({3, 8, 9, 39}))));
  EXPECT_EQ(numbers(of_some[1]), numbers(lots[1].index_select(0, at::tensor({0, 39}))));
  EXPECT_NE(numbers(lots[0]), numbers(lots[1])) << "heads differ";
  EXPECT_NE(numbers(lots[0]), numbers(scores("random(seed=6)", all)[0]));
  auto other = whole(40, 1);
  other.layer = 2;
  EXPECT_NE(numbers(lots[0]), numbers(scores("random(seed=5)", other)[0])) << "layers differ";
  const auto many = scores("random", whole(4000, 1))[0];
  EXPECT_GE(many.min().item<float>(), 0);
  EXPECT_LT(many.max().item<float>(), 1);
  EXPECT_NEAR(many.mean().item<float>(), 0.5, 4 * std::sqrt(1.0 / 12 / 4000));
}

TEST(H2O, ScoresColumnSums) {
  const Made layer({count_to(9), {1, 4, 8}}, 1, 3);
  for (const auto& how : kReductions) {
    const auto got = scores("h2o(reduce=" + how + ")", layer);
    for (std::size_t h = 0; h < 2; ++h) {
      Numbers want;
      for (std::int64_t j = 0; j < layer.sums[h].size(1); ++j)
        want.push_back(reduced(numbers(layer.sums[h].select(1, j)), how));
      expect_near(got[h], want, how);
    }
  }
  auto two = whole(3, 1);
  two.sums[0] = rows({{1.0F, 2.0F, 3.0F}, {5.0F, 0.0F, 3.0F}});
  expect_near(scores("h2o", two)[0], {3, 1, 3});
  expect_near(scores("h2o(reduce=max)", two)[0], {5, 2, 3});
}

TEST(Scissorhands, CountsRowsAboveTheirAverage) {
  const Made layer({count_to(15), {0, 2, 3, 10, 13, 14}}, 6, 3);
  for (const auto& how : kReductions) {
    const auto got = scores("scissorhands(window=4, reduce=" + how + ")", layer);
    for (std::int64_t h = 0; h < 2; ++h) {
      const auto a = layer.window_weights(h, 4);
      const auto tokens = layer.head(h).token_indices;
      Numbers want;
      for (std::size_t j = 0; j < tokens.size(); ++j) {
        Numbers counts(2, 0);
        for (std::int64_t g = 0; g < 2; ++g) {
          for (std::int64_t i = 0; i < 4; ++i) {
            const auto position = 11 + i;
            const auto seen =
                std::count_if(tokens.begin(), tokens.end(), [&](auto t) { return t <= position; });
            if (a[g][i][static_cast<std::int64_t>(j)].item<double>() >
                1.0 / static_cast<double>(seen))
              counts[static_cast<std::size_t>(g)] += 1;
          }
        }
        want.push_back(reduced(counts, how));
      }
      expect_near(got[static_cast<std::size_t>(h)], want, how);
    }
  }
}

TEST(Scissorhands, AWorkedCase) {
  // One query head; keys are one-hot, so that each query looks at the entry whose channel it has.
  Made layer({{0, 1, 2, 3}}, 2, 3, 1);
  layer.k[0] = at::eye(4, Made::kWidth) * 4;
  layer.q[0] = at::zeros({1, 2, Made::kWidth});
  layer.q[0][0][0][1] = 4;  // at position 2: entry 1
  layer.q[0][0][1][1] = 4;  // at position 3: entry 1 again, and 3 as much
  layer.q[0][0][1][3] = 4;
  expect_near(scores("scissorhands(window=8)", layer)[0], {0, 2, 0, 1});
  expect_near(scores("scissorhands(window=1)", layer)[0], {0, 1, 0, 1});
}

TEST(Tova, AveragesTheLastRowOverAllHeads) {
  const auto layer = whole(12, 3);
  Numbers want(12, 0);
  for (std::int64_t h = 0; h < 2; ++h) {
    const auto a = layer.window_weights(h, 1);
    for (std::int64_t j = 0; j < 12; ++j)
      want[static_cast<std::size_t>(j)] +=
          (a[0][0][j].item<double>() + a[1][0][j].item<double>()) / 4;
  }
  const auto got = scores("tova", layer);
  expect_near(got[0], want);
  EXPECT_EQ(numbers(got[0]), numbers(got[1])) << "all heads keep the same";
}

TEST(Tova, ATokenThatOneHeadHoldsScoresWhatThatHeadSays) {
  const Made layer({{0, 2, 5}, {2, 3, 5}}, 1, 7);
  const auto a = layer.window_weights(0, 1).mean(0)[0], b = layer.window_weights(1, 1).mean(0)[0];
  const auto both = [&](std::int64_t i, std::int64_t j) {
    return (a[i].item<double>() + b[j].item<double>()) / 2;
  };
  const auto got = scores("tova", layer);
  expect_near(got[0], {a[0].item<double>(), both(1, 0), both(2, 2)});
  expect_near(got[1], {both(1, 0), b[1].item<double>(), both(2, 2)});
}

TEST(SnapKv, SmoothsTheRowsOfTheWindow) {
  const Made layer({count_to(20), {0, 1, 5, 9, 10, 14, 15, 17, 18, 19}}, 7, 3);
  for (const std::string pooling : {"mean", "max"}) {
    for (const std::int64_t pool : {1, 3, 5}) {
      for (const auto& how : kReductions) {
        const auto spec = "snapkv(window=5, pool=" + std::to_string(pool) + ", pooling=" + pooling +
                          ", reduce=" + how + ")";
        const auto got = scores(spec, layer);
        for (std::int64_t h = 0; h < 2; ++h) {
          const auto a = layer.window_weights(h, 5).mean(1);  // [G,N]
          const auto tokens = layer.head(h).token_indices;
          const auto n = std::count_if(tokens.begin(), tokens.end(), [](auto t) { return t < 15; });
          Numbers want(tokens.size(), kInfinity);
          for (std::int64_t j = 0; j < n; ++j) {
            Numbers of_heads;
            for (std::int64_t g = 0; g < 2; ++g) {
              Numbers near;
              for (auto i = std::max<std::int64_t>(0, j - pool / 2);
                   i <= std::min(n - 1, j + pool / 2); ++i)
                near.push_back(a[g][i].item<double>());
              of_heads.push_back(reduced(near, pooling));
            }
            want[static_cast<std::size_t>(j)] = reduced(of_heads, how);
          }
          expect_near(got[static_cast<std::size_t>(h)], want, spec);
        }
      }
    }
  }
}

TEST(SnapKv, AShortTextIsAllWindow) {
  for (const auto& x : scores("snapkv(window=32)", whole(6, 6)))
    EXPECT_EQ(numbers(x), Numbers(6, kInfinity));
}

TEST(SnapKv, RefusesAnEvenPool) {
  check::expect_error(Errc::usage, "odd", [] { (void)registry().make<KvStage>("snapkv(pool=4)"); });
}

TEST(KNorm, SmallKeysScoreHigh) {
  auto layer = whole(3, 1);
  layer.k[0] = at::zeros({3, Made::kWidth});
  layer.k[0][0][0] = 3;
  layer.k[0][0][1] = -4;
  layer.k[0][2][5] = 1;
  expect_near(scores("k_norm", layer)[0], {-5, 0, -1});
}

TEST(KeyDiff, KeysLikeTheMeanScoreLow) {
  const Made layer({count_to(11), {2, 7, 10}}, 1, 4);
  const auto got = scores("keydiff", layer);
  for (std::size_t h = 0; h < 2; ++h) {
    Numbers mean(Made::kWidth, 0);
    const auto N = layer.k[h].size(0);
    for (std::int64_t j = 0; j < N; ++j) {
      const auto k = numbers(layer.k[h][j]);
      for (std::size_t d = 0; d < k.size(); ++d) mean[d] += k[d] / std::sqrt(dot(k, k));
    }
    Numbers want;
    for (std::int64_t j = 0; j < N; ++j) {
      const auto k = numbers(layer.k[h][j]);
      want.push_back(-dot(k, mean) / std::sqrt(dot(k, k) * dot(mean, mean)));
    }
    expect_near(got[h], want);
  }
  auto three = whole(4, 1);
  three.k[0] = at::zeros({4, Made::kWidth});
  three.k[0][0][0] = 1;
  three.k[0][1][0] = 5;
  three.k[0][2][0] = -2;
  expect_near(scores("keydiff", three)[0], {-1, -1, 1, 0});
}

TEST(ExpectedAttention, IsTheWeightThatQueriesLikeTheLastWillGive) {
  const Made layer({count_to(17), {0, 4, 9, 15, 16}}, 6, 5);
  for (const bool covariance : {true, false}) {
    for (const std::int64_t future : {1, 7}) {
      for (const auto& how : kReductions) {
        const auto spec = "expected_attention(window=4, future=" + std::to_string(future) +
                          ", covariance=" + (covariance ? "true" : "false") + ", reduce=" + how +
                          ")";
        const auto got = scores(spec, layer);
        for (std::size_t h = 0; h < 2; ++h) {
          const auto N = static_cast<std::size_t>(layer.k[h].size(0));
          std::vector<Numbers> of_heads;
          for (std::int64_t g = 0; g < 2; ++g) {
            // Every query, as it would be at the positions to come in the mean.
            std::vector<Numbers> queries;
            for (std::int64_t i = 2; i < 6; ++i) {
              const auto plain =
                  rotated(numbers(layer.q[h][g][i]), -static_cast<double>(11 + i), Made::kTheta);
              Numbers mean(Made::kWidth, 0);
              for (std::int64_t f = 1; f <= future; ++f) {
                const auto there = rotated(plain, static_cast<double>(16 + f), Made::kTheta);
                for (std::size_t d = 0; d < mean.size(); ++d)
                  mean[d] += there[d] / static_cast<double>(future);
              }
              queries.push_back(mean);
            }
            Numbers z;
            for (std::size_t j = 0; j < N; ++j) {
              const auto k = numbers(layer.k[h][static_cast<std::int64_t>(j)]);
              double mean = 0, square = 0;
              for (const auto& query : queries) {
                mean += layer.scale * dot(query, k) / 4;
                square += std::pow(layer.scale * dot(query, k), 2) / 4;
              }
              z.push_back(mean + (covariance ? (square - mean * mean) / 2 : 0));
            }
            of_heads.push_back(softmax(z));
          }
          Numbers want;
          for (std::size_t j = 0; j < N; ++j) {
            const auto v = numbers(layer.v[h][static_cast<std::int64_t>(j)]);
            want.push_back(reduced({of_heads[0][j], of_heads[1][j]}, how) * std::sqrt(dot(v, v)));
          }
          expect_near(got[h], want, spec);
        }
      }
    }
  }
}

TEST(QFilter, IsTheComponentAlongTheFilter) {
  const Made layer({count_to(8), {1, 7}}, 1, 6);
  HeadProfile profile;
  profile.numbers["qfilter"] = check::normal({3, 2, Made::kWidth}, 8);
  const auto got = scores("qfilter", layer, &profile);
  for (std::int64_t h = 0; h < 2; ++h) {
    const auto& keys = layer.k[static_cast<std::size_t>(h)];
    Numbers want;
    for (std::int64_t j = 0; j < keys.size(0); ++j)
      want.push_back(dot(numbers(keys[j]), numbers(profile.numbers["qfilter"][1][h])));
    expect_near(got[static_cast<std::size_t>(h)], want);
  }
}

TEST(QFilter, RefusesNumbersOfAnotherModel) {
  const auto layer = whole(8, 1);
  const auto refuse = [&](Errc code, const std::string& part, at::IntArrayRef sizes) {
    HeadProfile profile;
    if (!sizes.empty()) profile.numbers["qfilter"] = at::ones(sizes);
    check::expect_error(code, part, [&] { (void)scores("qfilter", layer, &profile); });
  };
  refuse(Errc::not_found, "mneme calibrate qfilter", {});
  refuse(Errc::mismatch, "[3, 2] where [layers, heads, width]", {3, 2});
  refuse(Errc::mismatch, "[3, 4, 6] where [3, 2, 6]", {3, 4, 6});
  refuse(Errc::mismatch, "[2, 2, 6]", {2, 2, 6});
  refuse(Errc::mismatch, "[3, 2, 8]", {3, 2, 8});
}

TEST(Chunk, EntriesScoreWhatTheirChunkScores) {
  Made layer({{0, 1, 2, 5, 6, 7}, count_to(8)}, 1, 6, 1);
  layer.sums[0] = rows({{6.0F, 0.0F, 3.0F, 1.0F, 2.0F, 9.0F}});
  // tokens 0-2 | 5 | 6, 7
  expect_near(scores("chunk(of=h2o, size=3)", layer)[0], {3, 3, 3, 1, 5.5, 5.5});
  expect_near(scores("chunk(of=h2o, size=1)", layer)[0], {6, 0, 3, 1, 2, 9});
  EXPECT_EQ(registry().make<KvStage>("chunk(of=h2o)")->needs().attention,
            AttentionLevel::column_sums);
  EXPECT_EQ(registry().make<KvStage>("chunk(of=snapkv(window=9))")->needs().query_window, 9);
  EXPECT_EQ(registry().make<KvStage>("chunk(of=qfilter)")->needs().head_profile, "qfilter");
}

TEST(Chunk, WhatIsProtectedOrForcedOutStaysSo) {
  const auto layer = whole(10, 3);
  const auto plain = scores("snapkv(window=3, pool=1)", layer)[0],
             chunks = scores("chunk(of=snapkv(window=3, pool=1), size=4)", layer)[0];
  const auto x = numbers(plain);
  const auto first = (x[0] + x[1] + x[2] + x[3]) / 4, second = (x[4] + x[5] + x[6]) / 3;
  expect_near(chunks, {first, first, first, first, second, second, second, kInfinity, kInfinity,
                       kInfinity});
}

TEST(Chunk, WantsOneStageThatScores) {
  check::expect_error(Errc::usage, "not 'window'",
                      [] { (void)registry().make<KvStage>("chunk(of=window)"); });
  check::expect_error(Errc::usage, "one stage",
                      [] { (void)registry().make<KvStage>("chunk(of={h2o | tova})"); });
}

TEST(Duo, StreamingHeadsKeepTheirEnds) {
  Made layer({count_to(9), {1, 4, 5, 6, 7, 8}}, 1, 6);  // layer 1 of 3, 2 query heads a KV head
  HeadProfile profile;
  // The best of the six KV heads are those of 0.9 (layer 1, head 0) and of 0.8 (layer 2, head 1).
  profile.numbers["retrieval_heads"] =
      rows({{0.1F, 0.2F, 0.3F, 0.0F}, {0.0F, 0.9F, 0.4F, 0.4F}, {0.0F, 0.0F, 0.8F, 0.7F}});
  const auto some = scores("duo(keep_heads=0.34, sinks=2, recent=3)", layer, &profile);
  expect_near(some[0], Numbers(9, 0));
  expect_near(some[1], {0, -kInfinity, -kInfinity, 0, 0, 0});
  const auto none = scores("duo(keep_heads=0, sinks=0, recent=8)", layer, &profile);
  expect_near(none[0], {-kInfinity, 0, 0, 0, 0, 0, 0, 0, 0});
  expect_near(none[1], Numbers(6, 0));
  for (const auto& x : scores("duo(keep_heads=1)", layer, &profile))
    EXPECT_EQ(x.abs().max().item<float>(), 0);
  profile.numbers["retrieval_heads"] = at::ones({3, 3});
  check::expect_error(Errc::mismatch, "[3, 3] where [3, a multiple of 2]",
                      [&] { (void)scores("duo", layer, &profile); });
}

TEST(FastGen, AWorkedCase) {
  // One query head and one query, which looks at tokens 0 (bos), 3 (a comma), 6 and 9 with weights that are set.
  Made layer({count_to(10)}, 1, 3, 1);
  const auto looks = [&](Numbers weights) {
    layer.k[0] = at::zeros({10, Made::kWidth});
    for (std::int64_t j = 0; j < 10; ++j) layer.k[0][j][0] = std::log(weights[j]) / layer.scale;
    layer.q[0] = at::zeros({1, 1, Made::kWidth});
    layer.q[0][0][0][0] = 1;
  };
  layer.ids[0] = at::tensor({7, 20, 21, 5, 22, 23, 24, 25, 26, 27}, at::kLong);
  layer.sums[0] = rows({{0, 0, 0, 0, 0, 8, 9, 0, 0, 0}});
  const auto stays = [&](const std::string& options) {
    Indices out;
    const auto x = numbers(scores("fastgen(" + options + ")", layer)[0]);
    for (std::size_t j = 0; j < x.size(); ++j) {
      EXPECT_TRUE(x[j] == 0 || x[j] == -kInfinity);
      if (x[j] == 0) out.push_back(static_cast<std::int64_t>(j));
    }
    return out;
  };
  const std::string rules = "frequent=0.2, local=0.1, first=0, special=[7], punctuation=[5, 6]";
  const double e = 1e-6;
  looks({1 - 9 * e, e, e, e, e, e, e, e, e, e});
  EXPECT_EQ(stays(rules), (Indices{0}));
  EXPECT_EQ(stays("first=2"), (Indices{0, 1})) << "the first tokens alone are special";
  looks({0.5, e, e, 0.5, e, e, e, e, e, e});
  EXPECT_EQ(stays(rules), (Indices{0, 3}));
  EXPECT_EQ(stays("recover=0.4, " + rules), (Indices{0}));
  looks({0.3, e, e, 0.3, e, 0.2, 0.2, e, e, e});
  EXPECT_EQ(stays(rules), (Indices{0, 3, 5, 6}));
  looks({0.2, e, e, 0.2, e, 0.2, 0.2, e, e, 0.2});
  EXPECT_EQ(stays(rules), (Indices{0, 3, 5, 6, 9}));
  looks({0.2, 0.2, e, 0.2, e, 0.2, 0.2, e, e, 0.2});
  EXPECT_EQ(stays(rules), count_to(10)) << "no rule is enough";
  looks({1 - 9 * e, e, e, e, e, e, e, e, e, e});
  EXPECT_EQ(stays("recover=1, " + rules), count_to(10));
}

TEST(FastGen, TheMostDemandingQueryHeadDecides) {
  const Made layer({count_to(30), count_to(30)}, 8, 5);
  for (const double recover : {0.3, 0.5, 0.7, 0.9}) {
    const auto got = scores(
        "fastgen(frequent=0.2, local=0.2, window=5, recover=" + std::to_string(recover) + ")",
        layer);
    for (std::int64_t h = 0; h < 2; ++h) {
      const auto a = layer.window_weights(h, 5).mean(1);
      auto received = numbers(layer.sums[static_cast<std::size_t>(h)].mean(0));
      std::vector<std::vector<bool>> rules(4, std::vector<bool>(30));
      auto sorted = received;
      std::sort(sorted.rbegin(), sorted.rend());
      for (std::size_t j = 0; j < 30; ++j) {
        rules[0][j] = j == 0;
        rules[1][j] = rules[0][j] || received[j] >= sorted[5];
        rules[2][j] = rules[1][j] || j >= 24;
        rules[3][j] = true;
      }
      std::size_t chosen = 0;
      for (; chosen < 3; ++chosen) {
        double least = 1;
        for (std::int64_t g = 0; g < 2; ++g) {
          double of_head = 0;
          for (std::int64_t j = 0; j < 30; ++j)
            of_head += rules[chosen][static_cast<std::size_t>(j)] ? a[g][j].item<double>() : 0;
          least = std::min(least, of_head);
        }
        if (least >= recover) break;
      }
      Numbers want;
      for (const bool stays : rules[chosen]) want.push_back(stays ? 0 : -kInfinity);
      expect_near(got[static_cast<std::size_t>(h)], want, std::to_string(recover));
    }
  }
}

TEST(Scores, WithoutQueriesSayNothing) {
  auto layer = whole(5, 0);
  for (const std::string spec :
       {"scissorhands", "tova", "snapkv", "expected_attention", "fastgen"}) {
    for (const auto& x : scores(spec, layer)) expect_near(x, Numbers(5, 0), spec);
  }
}

// ---- what stays ----

Indices kept(const std::string& spec, const HeadView& head, std::vector<float> of_entries,
             std::int64_t budget = 0) {
  const auto stage = registry().make<KvStage>(spec);
  Indices out;
  dynamic_cast<const EvictStage&>(*stage).keep(head, of_entries, budget, out);
  return out;
}

TEST(Threshold, KeepsWhatScoresEnough) {
  const Indices tokens{0, 3, 4, 6, 7, 9};
  const HeadView head{0, 0, 0, tokens, tokens};
  EXPECT_EQ(kept("threshold", head, {-1, 0, 1, -kInfinity, kNan, -2}), (Indices{1, 2, 5}))
      << "the last stays whatever it scores";
  EXPECT_EQ(kept("threshold(least=0.5, sinks=4, recent=2)", head, {-1, 0, 1, 0, -9, -9}),
            (Indices{0, 1, 2, 4, 5}));
  const auto stage = registry().make<KvStage>("threshold(every=4)");
  const auto& evict = dynamic_cast<const EvictStage&>(*stage);
  EXPECT_TRUE(evict.due({7, 3, false}).has_value());
  EXPECT_FALSE(evict.due({7, 1, false}).has_value());
  EXPECT_TRUE(evict.due({8, 1, false}).has_value());
  EXPECT_FALSE(evict.due({8, 0, true}).has_value());
}

TEST(Keep, EntriesWithoutANumberGoFirst) {
  const auto tokens = count_to(6);
  EXPECT_EQ(
      kept("keep(sinks=0, recent=0)", {0, 0, 0, tokens, tokens}, {kNan, 2, kNan, 1, -5, kNan}, 3),
      (Indices{1, 3, 4}));
}

// ---- budgets ----

std::vector<std::int64_t> budgets(const std::string& spec, const LayerView& layer,
                                  const std::vector<at::Tensor>& of_heads, std::int64_t each,
                                  std::int64_t floor) {
  const auto stage = registry().make<KvStage>(spec);
  return dynamic_cast<const BudgetStage&>(*stage).of_heads(layer, of_heads, each, floor);
}

TEST(AdaKv, AWorkedCase) {
  const auto layer = whole(5, 1);
  const std::vector<at::Tensor> x{at::tensor({9.0F, 8.0F, 7.0F, 1.0F, 1.0F}),
                                  at::tensor({2.0F, 6.0F, 1.0F, 3.0F, 0.0F})};
  EXPECT_EQ(budgets("adakv(floor=0)", layer, x, 2, 0), (Indices{3, 1}));
  EXPECT_EQ(budgets("adakv(floor=0)", layer, x, 1, 0), (Indices{2, 0}));
  EXPECT_EQ(budgets("adakv(floor=1)", layer, x, 2, 0), (Indices{2, 2}));
  EXPECT_EQ(budgets("adakv(floor=0)", layer, x, 2, 2), (Indices{2, 2}))
      << "what is protected stays";
  EXPECT_EQ(budgets("adakv", layer, {}, 2, 0), (Indices{2, 2}))
      << "without scores shares are equal";
  const auto model = registry().make<KvStage>("adakv(floor=0, scope=model)");
  const auto& shared = dynamic_cast<const BudgetStage&>(*model);
  EXPECT_TRUE(shared.over_layers());
  EXPECT_EQ(shared.of_model({x[0], x[1], x[1]}, 2, 0), (Indices{3, 2, 1}));
}

TEST(AdaKv, HeadsKeepTheBestOfTheLayer) {
  for (std::uint64_t seed = 1; seed < 20; ++seed) {
    const Made layer({count_to(30), count_to(30), {0, 9, 29}, count_to(22)}, 1, seed);
    std::vector<at::Tensor> x;
    std::vector<std::pair<double, std::size_t>> all;
    for (std::size_t h = 0; h < 4; ++h) {
      x.push_back(check::normal({layer.k[h].size(0)}, seed * 10 + h) *
                  static_cast<double>(1 + 2 * h));
      if (seed == 4) x.back()[1] = kNan;
      if (seed == 5) x.back()[2] = kInfinity;
    }
    const std::int64_t each = 10, least = 3;
    const auto got = budgets("adakv(floor=0.3)", layer, x, each, 1);
    EXPECT_EQ(std::accumulate(got.begin(), got.end(), std::int64_t{0}), 4 * each);
    std::int64_t left = 4 * each;
    Indices want;
    for (std::size_t h = 0; h < 4; ++h) {
      auto of_head = numbers(x[h]);
      for (auto& score : of_head) score = std::isnan(score) ? -kInfinity : score;
      std::sort(of_head.rbegin(), of_head.rend());
      want.push_back(std::min(least, layer.k[h].size(0)));
      left -= want.back();
      for (auto i = static_cast<std::size_t>(want.back()); i < of_head.size(); ++i)
        all.emplace_back(of_head[i], h);
    }
    std::sort(all.rbegin(), all.rend());
    for (std::int64_t i = 0; i < left; ++i) ++want[all[static_cast<std::size_t>(i)].second];
    EXPECT_EQ(got, want) << "seed " << seed;
  }
}

TEST(Pyramid, FallsWithDepthAndKeepsTheSum) {
  const auto of_layers = [](const std::string& spec, std::int64_t L, std::int64_t each) {
    const auto stage = registry().make<KvStage>(spec);
    Indices out;
    for (std::int64_t l = 0; l < L; ++l)
      out.push_back(dynamic_cast<const BudgetStage&>(*stage).of_layer(l, L, each));
    return out;
  };
  EXPECT_EQ(of_layers("pyramid(slope=0.5, floor=10)", 3, 30), (Indices{40, 30, 20}));
  EXPECT_EQ(of_layers("pyramid(slope=1, floor=0)", 5, 8), (Indices{16, 12, 8, 4, 0}));
  EXPECT_EQ(of_layers("pyramid(slope=0)", 3, 90), (Indices{90, 90, 90}));
  EXPECT_EQ(of_layers("pyramid", 1, 90), (Indices{90}));
  for (std::int64_t L = 1; L < 34; ++L) {
    for (const std::int64_t each : {1, 37, 40, 100, 101, 257}) {
      for (const std::string spec : {"pyramid", "pyramid(slope=0.37, floor=7)"}) {
        const auto got = of_layers(spec, L, each);
        EXPECT_EQ(std::accumulate(got.begin(), got.end(), std::int64_t{0}), L * each)
            << spec << " of " << L << " layers";
        EXPECT_TRUE(std::is_sorted(got.rbegin(), got.rend()));
        EXPECT_GE(got.back(), std::min<std::int64_t>(each, spec == "pyramid" ? 36 : 7));
      }
    }
  }
  const auto layer = whole(9, 1);
  EXPECT_EQ(budgets("pyramid", layer, {}, 5, 3), (Indices{5, 5}));
  EXPECT_EQ(budgets("pyramid", layer, {}, 2, 3), (Indices{3, 3})) << "what is protected stays";
}

// ---- merging ----

at::Tensor merged(const std::string& spec, const Made& layer, const Indices& keep) {
  const auto stage = registry().make<KvStage>(spec);
  const auto index = at::tensor(keep);
  auto keys = layer.k[0].index_select(0, index), values = layer.v[0].index_select(0, index);
  const auto before = keys.clone();
  dynamic_cast<const MergeStage&>(*stage).merge(layer, 0, keep, keys, values);
  EXPECT_TRUE(at::equal(keys, before)) << "keys stay";
  return values;
}

TEST(Cam, FoldsIntoTheNextThatStay) {
  Made layer({count_to(7)}, 1, 6, 2);
  // Entry 0 received more than those behind it, 2 nothing; behind 6 nothing stays.
  layer.sums[0] = rows(
      {{9.0F, 1.0F, 0.0F, 2.0F, 9.0F, 1.0F, 9.0F}, {9.0F, 1.0F, 0.0F, 2.0F, 9.0F, 1.0F, 9.0F}});
  const auto& v = layer.v[0];
  const auto got = merged("cam(window=2)", layer, {1, 3, 5});
  EXPECT_TRUE(check::close(got[0], v[1] + v[0] / 2, 1e-6));
  EXPECT_TRUE(check::close(got[1], v[3] + v[0] / 2, 1e-6));
  EXPECT_TRUE(check::close(got[2], v[5] + v[4], 1e-6)) << "only one stays behind entry 4";
  const auto all = merged("cam(window=32)", layer, {1, 3, 5});
  EXPECT_TRUE(check::close(all[0], v[1] + v[0] / 3, 1e-6));
  EXPECT_TRUE(check::close(all[2], v[5] + v[0] / 3 + v[4], 1e-6));
  EXPECT_TRUE(check::identical(merged("cam", layer, count_to(7)), v)) << "nothing goes";
}

TEST(Cam, TheLotFollowsWhatWasAttendedTo) {
  Made layer({count_to(2000)}, 1, 6, 1);
  layer.sums[0] = at::full({1, 2000}, 1.0F);
  Indices keep;
  for (std::int64_t j = 1; j < 2000; j += 2) {
    keep.push_back(j);
    layer.sums[0][0][j] = 4;  // those that go received a quarter of what those that stay did
  }
  layer.v[0] = at::ones({2000, Made::kWidth});
  const auto folded = [&](const std::string& spec) {
    return merged(spec, layer, keep).select(1, 0) - 1;
  };
  const auto first = folded("cam(window=1)"), second = folded("cam(window=1, seed=1)");
  EXPECT_NEAR(first.mean().item<double>(), 0.25, 4 * std::sqrt(0.25 * 0.75 / 1000));
  EXPECT_NEAR(second.mean().item<double>(), 0.25, 4 * std::sqrt(0.25 * 0.75 / 1000));
  EXPECT_FALSE(at::equal(first, second));
  EXPECT_TRUE(at::equal(first, folded("cam(window=1)")));
  layer.sums[0].zero_();
  EXPECT_EQ(folded("cam").abs().max().item<float>(), 0) << "nobody looked at anything";
}

// ---- in plans ----

std::shared_ptr<const HeadProfile> profile() {
  auto out = std::make_shared<HeadProfile>();
  out->numbers["qfilter"] = check::normal({2, 2, 8}, 21);
  out->numbers["retrieval_heads"] = rows({{0.1F, 0.2F, 0.3F, 0.0F}, {0.0F, 0.1F, 0.4F, 0.9F}});
  return out;
}

class Plans : public ::testing::Test {
 protected:
  [[nodiscard]] State start(const std::string& chain) const {
    auto state = tiny_.model->start(1);
    if (!chain.empty()) use_plan(state, std::make_shared<KvPlan>(parse_chain(chain), profile()));
    return state;
  }
  [[nodiscard]] std::vector<double> kept(const State& state) const {
    std::vector<double> out;
    for (const auto* store : kv_stores(state)) out.push_back(store->kept(0));
    return out;
  }
  ~Plans() override { mechanisms::witness::told() = nullptr; }

  const c10::InferenceMode inference_;
  const check::TinyModel tiny_{check::kTinyDecoder};
  const std::vector<std::string> chains_{"random",
                                         "h2o",
                                         "h2o(reduce=max)",
                                         "scissorhands(window=16)",
                                         "tova",
                                         "snapkv(window=8)",
                                         "snapkv(window=8, pooling=max)",
                                         "k_norm",
                                         "keydiff",
                                         "expected_attention(window=16, future=32)",
                                         "chunk(of=snapkv(window=8), size=4)",
                                         "qfilter",
                                         "h2o | adakv",
                                         "snapkv(window=8) | adakv",
                                         "h2o | pyramid(slope=0.5, floor=10)"};
};

TEST_F(Plans, KeepNoMoreThanTheySay) {
  const auto ids = check::random_ids(1, 260, 50, 4);
  for (const auto& chain : chains_) {
    auto state = start(chain + " | keep(entries=40, sinks=2, recent=8, every=4)");
    std::int64_t at = 0;
    for (const std::int64_t n : {30, 60, 1, 1, 1, 1, 1, 5, 100, 1, 1, 58}) {
      const auto logits = tiny_.logits(ids.narrow(1, at, n), state);
      EXPECT_TRUE(logits.isfinite().all().item<bool>()) << chain;
      at += n;
      const auto usage = kv_usage(state);
      EXPECT_LE(usage.kept, 40) << chain << " after " << at;
      // A layer with a smaller share drops entries while others have room left.
      const bool equal = chain.find("pyramid") == chain.npos;
      EXPECT_GE(usage.kept, equal || at > 55 ? std::min<std::int64_t>(at, 37) : 25)
          << chain << " after " << at;
      EXPECT_EQ(usage.seen, at);
    }
  }
}

TEST_F(Plans, ABudgetAboveTheLengthChangesNoBit) {
  const auto ids = check::random_ids(1, 120, 50, 5);
  const auto run = [&](State& state) {
    std::vector<at::Tensor> out;
    std::int64_t at = 0;
    for (const std::int64_t n : {50, 1, 1, 68}) {
      out.push_back(tiny_.logits(ids.narrow(1, at, n), state));
      at += n;
    }
    return at::cat(out, 1);
  };
  auto full = start("");
  const auto want = run(full);
  for (const auto& chain : chains_) {
    auto state = start(chain + " | keep(entries=240, sinks=2, recent=8)");
    EXPECT_TRUE(check::identical(run(state), want)) << chain;
  }
}

/// What stages are shown of a layer, against attention written out over all queries and keys of the model.
TEST_F(Plans, StagesSeeAttentionAsItIs) {
  constexpr double kTheta = 10000;
  const auto scale = 1 / std::sqrt(8.0);
  const auto ids = check::random_ids(1, 120, 50, 6);
  for (const std::string chain :
       {"threshold(every=1)", "threshold(every=1) | h2o | keep(entries=24, sinks=2, recent=8)",
        "threshold(every=1) | h2o | adakv | keep(entries=24, sinks=2, recent=8, every=2)"}) {
    std::vector<std::vector<at::Tensor>> q(2), k(2);  // of each layer, by token [heads,8]
    Taps taps;
    const auto note = [](std::vector<std::vector<at::Tensor>>& of_layers) {
      return [&](std::string_view name, const at::Tensor& x) {
        auto& of_layer = of_layers[name.starts_with("layers.0") ? 0 : 1];
        for (std::int64_t t = 0; t < x.size(2); ++t) of_layer.push_back(x[0].select(1, t).clone());
        return x;
      };
    };
    taps.add("layers.*.attn.q", note(q));
    taps.add("layers.*.attn.k", note(k));
    std::map<std::vector<std::int64_t>, double> received;  // by layer, head of its group, token
    std::int64_t looks = 0;
    mechanisms::witness::told() = [&](const LayerView& view) {
      ++looks;
      const auto l = static_cast<std::size_t>(view.layer);
      const auto seen = view.moment.seen, first = seen - view.moment.chunk;
      ASSERT_EQ(static_cast<std::int64_t>(q[l].size()), seen);
      EXPECT_EQ(view.group, 2);
      EXPECT_NEAR(view.scale, scale, 1e-9);
      for (std::int64_t h = 0; h < 2; ++h) {
        const auto head = view.head(h);
        const auto N = head.entries();
        std::vector<Numbers> keys;
        for (const auto t : head.token_indices)
          keys.push_back(rotated(numbers(k[l][static_cast<std::size_t>(t)][h]),
                                 static_cast<double>(t), kTheta));
        const auto sums = view.column_sums(h);
        const auto w = std::min<std::int64_t>(seen, 5);
        ASSERT_EQ(static_cast<std::int64_t>(view.query_positions().size()), w);
        const auto weights = view.window_weights(h, w), ids_of = view.token_ids(h);
        for (std::int64_t g = 0; g < 2; ++g) {
          for (auto t = std::min(first, seen - w); t < seen; ++t) {
            const auto query = rotated(numbers(q[l][static_cast<std::size_t>(t)][2 * h + g]),
                                       static_cast<double>(t), kTheta);
            Numbers z;
            for (std::int64_t j = 0; j < N; ++j) {
              const auto at = static_cast<std::size_t>(j);
              z.push_back(head.token_indices[at] <= t ? scale * dot(query, keys[at]) : -kInfinity);
            }
            const auto a = softmax(z);
            for (std::int64_t j = 0; j < N; ++j) {
              const auto at = static_cast<std::size_t>(j);
              if (t >= first) received[{view.layer, h, g, head.token_indices[at]}] += a[at];
              if (t < seen - w) continue;
              EXPECT_NEAR(weights[g][t - (seen - w)][j].item<double>(), a[at], 1e-4);
            }
          }
          for (std::int64_t j = 0; j < N; ++j) {
            const auto token = head.token_indices[static_cast<std::size_t>(j)];
            const auto want = received.at({view.layer, h, g, token});
            EXPECT_NEAR(sums[g][j].item<double>(), want, 1e-4 * std::max(1.0, want))
                << chain << ": layer " << view.layer << " head " << h << " token " << token
                << " after " << seen;
            EXPECT_EQ(ids_of[j].item<std::int64_t>(), ids[0][token].item<std::int64_t>());
          }
        }
        EXPECT_TRUE(check::close(
            view.turned(view.unrotated_keys(h), {head.positions.begin(), head.positions.end()}),
            view.keys(h), 1e-5));
        EXPECT_TRUE(check::close(view.unrotated_keys(h)[N - 1],
                                 k[l][static_cast<std::size_t>(head.token_indices.back())][h],
                                 1e-5));
      }
    };
    auto state = start("witness(window=5, columns=true, tokens=true) | " + chain);
    std::int64_t at = 0;
    for (const std::int64_t n : {20, 7, 1, 1, 33, 1, 1, 12, 1, 43}) {
      Batch batch;
      batch.ids = ids.narrow(1, at, n);
      batch.taps = &taps;
      batch.compute = Compute::f32;
      (void)tiny_.model->forward(batch, state);
      at += n;
    }
    EXPECT_EQ(looks, 2 * 10) << "every layer after every chunk";
    EXPECT_EQ(kv_usage(state).kept, chain == "threshold(every=1)" ? 120 : 24);
  }
}

TEST_F(Plans, HeadsShareWhatALayerKeeps) {
  std::vector<std::int64_t> held;
  mechanisms::witness::told() = [&](const LayerView& view) {
    for (std::int64_t h = 0; h < view.heads; ++h) held.push_back(view.head(h).entries());
  };
  auto state =
      start("witness | threshold(every=1) | h2o | adakv | keep(entries=40, sinks=2, recent=8)");
  (void)tiny_.logits(check::random_ids(1, 150, 50, 7), state);
  EXPECT_EQ(kept(state), (std::vector<double>{40, 40}));
  held.clear();
  (void)tiny_.logits(check::random_ids(1, 3, 50, 8), state);
  ASSERT_EQ(held.size(), 4u);
  EXPECT_EQ(held[0] + held[1], 2 * 43);
  EXPECT_EQ(held[2] + held[3], 2 * 43);
  EXPECT_TRUE(held[0] != held[1] || held[2] != held[3]) << "heads do not all keep the same";
  for (const auto n : held) EXPECT_GE(n, 10 + 3) << "what is protected stays";
}

TEST_F(Plans, EarlyLayersKeepMore) {
  auto state = start("h2o | pyramid(slope=0.5, floor=10) | keep(entries=40, sinks=2, recent=8)");
  (void)tiny_.logits(check::random_ids(1, 150, 50, 7), state);
  EXPECT_EQ(kept(state), (std::vector<double>{55, 25}));
}

TEST_F(Plans, AHeadThatLooksFarBackKeepsEverything) {
  // The best query head is the last of layer 1: so that layer's second KV head.
  auto state = start("duo(keep_heads=0.25, sinks=2, recent=8) | threshold(every=1)");
  const auto ids = check::random_ids(1, 150, 50, 7);
  (void)tiny_.logits(ids.narrow(1, 0, 100), state);
  for (std::int64_t t = 100; t < 150; ++t) (void)tiny_.logits(ids.narrow(1, t, 1), state);
  EXPECT_EQ(kept(state), (std::vector<double>{10, (150 + 10) / 2.0}));
}

TEST_F(Plans, HeadsThatMustRecoverMoreKeepMore) {
  const auto ids = check::random_ids(1, 150, 50, 7);
  double before = 0;
  for (const std::string recover : {"0", "0.3", "0.6", "0.9", "1"}) {
    auto state =
        start("fastgen(punctuation=[1, 2, 3], frequent=0.5, local=0.3, recover=" + recover +
              ") | threshold(when=end)");
    (void)tiny_.logits(ids, state);
    EXPECT_EQ(kv_usage(state).kept, 150) << "the prompt is read whole";
    finish_prompt(state);
    const auto now = kv_usage(state).kept;
    EXPECT_GE(now, before) << recover;
    if (recover == "0") {
      EXPECT_EQ(now, 2) << "the first token, and the last";
    }
    if (recover == "0.3") {
      EXPECT_GT(now, 2);
      EXPECT_LT(now, 150);
    }
    before = now;
  }
  EXPECT_EQ(before, 150);
}

TEST(Keep, WhatIsProtectedComesBeforeInfinity) {
  const auto made =
      registry().make<KvStage>(parse_stage("keep(entries=8, sinks=2, recent=3, when=end)"));
  const auto& keep = dynamic_cast<const EvictStage&>(*made);
  std::vector<std::int64_t> tokens(20);
  std::iota(tokens.begin(), tokens.end(), 0);
  // Ten entries in the middle may not be lost, and five of them do not fit beside the first and the last ones.
  std::vector<float> scores(20, 1);
  std::fill(scores.begin() + 5, scores.begin() + 15, std::numeric_limits<float>::infinity());
  scores[0] = -std::numeric_limits<float>::infinity();
  std::vector<std::int64_t> kept;
  keep.keep({0, 0, 0, tokens, tokens}, scores, 8, kept);
  EXPECT_EQ(kept, (std::vector<std::int64_t>{0, 1, 12, 13, 14, 17, 18, 19}));
}

TEST_F(Plans, OnlyABoundBelowTheContextLetsATextGrow) {
  const auto grows = [&](const std::string& plan) { return any_length(start(plan), 64); };
  EXPECT_TRUE(grows("window(sinks=4, size=30) | renumber"));
  EXPECT_FALSE(grows("window(sinks=4, size=100) | renumber"))
      << "it reads farther than the context";
  EXPECT_FALSE(grows("window(sinks=4, size=30)"));
  EXPECT_TRUE(grows("infllm(local=32, chunk=16)"));
  EXPECT_FALSE(grows("infllm(local=100, chunk=16)"));
}

TEST_F(Plans, MergingChangesValuesAndNothingElse) {
  const auto ids = check::random_ids(1, 150, 50, 9);
  const auto run = [&](const std::string& merge) {
    auto state = start("h2o | keep(entries=40, sinks=2, recent=8)" + merge);
    (void)tiny_.logits(ids.narrow(1, 0, 140), state);
    EXPECT_EQ(kv_usage(state).kept, 40);
    return tiny_.logits(ids.narrow(1, 140, 10), state);
  };
  const auto plain = run(""), with = run(" | cam");
  EXPECT_TRUE(with.isfinite().all().item<bool>());
  EXPECT_FALSE(at::equal(plain, with));
  EXPECT_TRUE(check::identical(run(" | cam"), with)) << "the lots are the same every time";
}

TEST_F(Plans, NumbersOfAnotherModelAreRefused) {
  auto other = std::make_shared<HeadProfile>();
  other->numbers["qfilter"] = at::ones({2, 3, 8});
  auto state = tiny_.model->start(1);
  use_plan(state, std::make_shared<KvPlan>(
                      parse_chain("qfilter | keep(entries=40, sinks=2, recent=8)"), other));
  check::expect_error(Errc::mismatch, "[2, 3, 8] where [2, 2, 8]",
                      [&] { (void)tiny_.logits(check::random_ids(1, 60, 50, 7), state); });
}

}  // namespace
}  // namespace mneme
