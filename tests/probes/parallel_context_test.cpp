// Windows read side by side: against one text where there is one window, against sums written out for entropies and
// selection, and against themselves in another order.
#include "mneme/probes/parallel_context.h"

#include "mneme/core/taps.h"
#include "mneme/kv/plan.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "../bench/kv_models.h"
#include "../tensor_check.h"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <numeric>

namespace mneme {
namespace {

using Ids = std::vector<std::int32_t>;

Ids joined(std::initializer_list<Ids> parts) {
  Ids out;
  for (const auto& part : parts) out.insert(out.end(), part.begin(), part.end());
  return out;
}

std::vector<Ids> some_windows() {
  return {check::letter_ids(70, 1), check::letter_ids(33, 2), check::letter_ids(128, 3),
          check::letter_ids(5, 4)};
}

TEST(ParallelContext, OneWindowIsTheTextReadAtOnce) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto text = check::letter_ids(150, 7), query = check::letter_ids(20, 8);
  for (const auto& prefix : {Ids{}, Ids{4}, check::letter_ids(9, 6)}) {
    const ParallelContext context(model, prefix);
    const auto windows = context.encode(std::vector<Ids>{text});
    const auto got = context.read(windows, query, 0, LogitsAt::all);
    auto state = model.model->start(1);
    const auto want = model.run(joined({prefix, text, query}), state, LogitsAt::all).logits;
    EXPECT_TRUE(check::close(got.logits, want.narrow(1, want.size(1) - 20, 20), 1e-5));
    // And so it goes on.
    auto behind = got.state.fork();
    EXPECT_TRUE(check::close(model.run({1, 2, 3}, behind).logits,
                             model.run({1, 2, 3}, state).logits, 1e-5));
    EXPECT_EQ(behind.positions, state.positions);
  }
}

TEST(ParallelContext, TheOrderOfWindowsDoesNotMatter) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto query = check::letter_ids(12, 9);
  const ParallelContext context(model, Ids{3, 1});
  auto texts = some_windows();
  const auto want = context.read(context.encode(texts), query, 0, LogitsAt::all);
  const auto chosen = context.read(context.encode(texts), query, 2, LogitsAt::all);
  std::reverse(texts.begin(), texts.end());
  const auto windows = context.encode(texts);
  const auto got = context.read(windows, query, 0, LogitsAt::all);
  EXPECT_TRUE(check::close(got.logits, want.logits, 1e-5));
  EXPECT_TRUE(check::close(got.entropy, want.entropy, 1e-4));
  const auto also = context.read(windows, query, 2, LogitsAt::all);
  EXPECT_TRUE(check::close(also.logits, chosen.logits, 1e-5));
  EXPECT_GT(check::rms_error(chosen.logits, want.logits), 1e-3) << "what is masked was looked at";
}

TEST(ParallelContext, WindowsAreEncodedApartAndSeenTogether) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto texts = some_windows();
  const Ids prefix{7, 8, 9}, query = check::letter_ids(6, 10);
  const ParallelContext context(model, prefix);
  const auto together = context.encode(texts);
  // Rows of one pass against each window alone behind the prefix.
  for (std::size_t w = 0; w < texts.size(); ++w) {
    auto state = model.model->start(1);
    (void)model.run(joined({prefix, texts[w]}), state);
    const auto stores = kv_stores(std::as_const(state));
    const auto n = static_cast<std::int64_t>(texts[w].size());
    ASSERT_EQ(together[w].tokens, n);
    for (std::size_t l = 0; l < stores.size(); ++l) {
      const auto alone = stores[l]->read(0, 3, 3 + n);
      EXPECT_TRUE(check::close(together[w].layers[l].keys, alone.keys, 1e-5));
      EXPECT_TRUE(check::close(together[w].layers[l].values, alone.values, 1e-5));
    }
  }
  const auto got = context.read(together, query);
  EXPECT_EQ(got.state.positions[0], 3 + 128 + 6) << "the query stands behind the longest window";
  EXPECT_EQ(kv_usage(got.state).seen, 3 + 70 + 33 + 128 + 5 + 6);
}

TEST(ParallelContext, AsManyAsThereAreIsNoSelection) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto query = check::letter_ids(12, 9);
  const ParallelContext context(model, Ids{3});
  const auto windows = context.encode(some_windows());
  const auto all = context.read(windows, query), four = context.read(windows, query, 4),
             many = context.read(windows, query, 9);
  EXPECT_TRUE(four.logits.equal(all.logits));
  EXPECT_TRUE(four.entropy.equal(all.entropy));
  EXPECT_TRUE(many.logits.equal(all.logits));
  for (const auto& layer : four.chosen) EXPECT_EQ(layer, (std::vector<std::int64_t>{0, 1, 2, 3}));
}

TEST(ParallelContext, WindowsServeAnyNumberOfQueries) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto first = check::letter_ids(12, 9), second = check::letter_ids(7, 11);
  const ParallelContext context(model, Ids{3});
  const auto kept = context.encode(some_windows());
  (void)context.read(kept, first, 2);
  const auto again = context.read(kept, second, 2);
  EXPECT_TRUE(again.logits.equal(context.read(context.encode(some_windows()), second, 2).logits));
}

TEST(ParallelContext, EntropiesAndChoicesAreThoseOfTheWeightsWrittenOut) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model();
  const auto texts = some_windows();
  const Ids prefix{7, 8}, query = check::letter_ids(6, 10);
  const ParallelContext context(model, prefix);
  const auto windows = context.encode(texts);
  for (const std::int64_t select : {0, 2}) {
    // The first layer: queries and keys of tokens alone, caught as the model makes them.
    const auto shape = attention_of(model);
    at::Tensor q, k;
    const auto catch_of = [&](const Ids& ids) {
      watch_attention(
          model, ids, 1000, [](std::int64_t) {},
          [&](std::int64_t layer, std::int64_t, const at::Tensor& queries, const at::Tensor& keys) {
            if (layer != 0) return;
            q = queries.clone();
            k = keys.clone();
          });
    };
    std::vector<at::Tensor> keys;
    std::vector<std::int64_t> sizes{2};
    const auto add = [&](const Ids& ids, std::int64_t position) {
      catch_of(ids);
      keys.push_back(turned(shape, k, at::arange(position, position + k.size(1), at::kLong)));
    };
    add(prefix, 0);
    for (const auto& text : texts) {
      add(text, 2);
      sizes.push_back(static_cast<std::int64_t>(text.size()));
    }
    add(query, 130);
    sizes.push_back(6);
    const auto all = at::cat(keys, 1).to(at::kDouble);  // [H,N,d]
    const auto asked = turned(shape, q, at::arange(130, 136, at::kLong)).to(at::kDouble);
    const auto N = all.size(1), Hq = asked.size(0), G = Hq / all.size(0);
    std::vector<bool> masked(static_cast<std::size_t>(N), false);
    at::Tensor weights = at::zeros({Hq, 6, N}, at::kDouble);
    const auto weigh = [&] {
      weights.zero_();
      for (std::int64_t h = 0; h < Hq; ++h) {
        for (std::int64_t t = 0; t < 6; ++t) {
          double sum = 0;
          for (std::int64_t j = 0; j < N; ++j) {
            if (j > N - 6 + t || masked[static_cast<std::size_t>(j)]) continue;
            const auto a =
                std::exp((asked[h][t] * all[h / G][j]).sum().item<double>() / std::sqrt(8.0));
            weights[h][t][j] = a;
            sum += a;
          }
          weights[h][t] /= sum;
        }
      }
    };
    weigh();
    std::vector<std::int64_t> want{0, 1, 2, 3};
    if (select > 0) {
      std::vector<double> score;
      std::int64_t first = 2;
      for (std::size_t w = 1; w + 1 < sizes.size(); ++w) {
        double sum = 0;
        for (std::int64_t h = 0; h < Hq; ++h) {
          for (std::int64_t t = 0; t < 6; ++t) {
            std::vector<double> of;
            for (auto j = first; j < first + sizes[w]; ++j)
              of.push_back(weights[h][t][j].item<double>());
            std::sort(of.rbegin(), of.rend());
            for (std::size_t i = 0; i < 5 && i < of.size(); ++i) sum += of[i];
          }
        }
        score.push_back(sum);
        first += sizes[w];
      }
      std::sort(want.begin(), want.end(), [&](auto a, auto b) {
        return score[static_cast<std::size_t>(a)] > score[static_cast<std::size_t>(b)];
      });
      want.resize(2);
      std::sort(want.begin(), want.end());
      first = 2;
      for (std::int64_t w = 0; w < 4; ++w) {
        const bool out = std::find(want.begin(), want.end(), w) == want.end();
        const auto n = sizes[static_cast<std::size_t>(w + 1)];
        for (auto j = first; out && j < first + n; ++j) masked[static_cast<std::size_t>(j)] = true;
        first += n;
      }
      weigh();
      EXPECT_TRUE(check::close(weights.sum(-1), at::ones({Hq, 6}, at::kDouble), 1e-12));
    }
    const auto entropy = -(weights * weights.clamp_min(1e-300).log()).sum(-1);
    const auto got = context.read(windows, query, select);
    EXPECT_EQ(got.chosen[0], want);
    EXPECT_LT((got.entropy[0].to(at::kDouble) - entropy).abs().max().item<double>(), 1e-4);
  }
}

TEST(AttentionEntropy, IsThatOfTheWeights) {
  // Of n equal scores ln n, of one entry 0.
  const auto at_keys = at::arange(200, at::kLong);
  const auto zero = attention_entropy(at::zeros({4, 3, 64}), at::tensor({0L, 9L, 199L}, at::kLong),
                                      check::normal({2, 200, 64}, 1), at_keys);
  for (std::int64_t h = 0; h < 4; ++h) {
    EXPECT_NEAR(zero[h][0].item<double>(), 0, 1e-5);
    EXPECT_NEAR(zero[h][1].item<double>(), std::log(10.0), 1e-5);
    EXPECT_NEAR(zero[h][2].item<double>(), std::log(200.0), 1e-5);
  }
  // Sharp and flat ones, written out.
  for (const double c : {0.3, 1.0, 6.0}) {
    const auto q = c * check::normal({4, 5, 64}, 2), k = check::normal({2, 200, 64}, 3);
    const auto at_q = at::arange(195, 200, at::kLong);
    const auto got = attention_entropy(q, at_q, k, at_keys);
    for (std::int64_t h = 0; h < 4; ++h) {
      for (std::int64_t t = 0; t < 5; ++t) {
        const auto seen = k[h / 2].narrow(0, 0, 196 + t).to(at::kDouble);
        const auto p = (at::mv(seen, q[h][t].to(at::kDouble)) / 8).softmax(0);
        const auto want = -(p * p.clamp_min(1e-300).log()).sum().item<double>();
        EXPECT_NEAR(got[h][t].item<double>(), want, 1e-4) << c;
      }
    }
  }
}

TEST(SelectGroups, CountsTheLargestWeightsOfEachGroup) {
  // Two tokens of one head; a sink, then groups of 3, 2 and 1.
  const auto weights =
      at::tensor({0.5, 0.1, 0.1, 0.1, 0.0, 0.2, 0.0, 0.6, 0.0, 0.1, 0.1, 0.0, 0.1, 0.1})
          .view({1, 2, 7});
  const std::vector<std::int64_t> sizes{3, 2, 1};
  EXPECT_EQ(select_groups(weights, 1, sizes, 1), (std::vector<std::int64_t>{0}));
  EXPECT_EQ(select_groups(weights, 1, sizes, 2), (std::vector<std::int64_t>{0, 1}));
  EXPECT_EQ(select_groups(weights, 1, sizes, 1, 1), (std::vector<std::int64_t>{1}));
  EXPECT_EQ(select_groups(weights, 1, sizes, 3), (std::vector<std::int64_t>{0, 1, 2}));
}

TEST(CutIntoWindows, LosesNothing) {
  const auto ids = check::letter_ids(31, 1);
  for (const std::int64_t P : {1, 2, 7, 31}) {
    const auto windows = cut_into_windows(ids, P);
    ASSERT_EQ(static_cast<std::int64_t>(windows.size()), P);
    Ids all;
    for (const auto& window : windows) {
      EXPECT_LE(windows.front().size() - window.size(), 1u);
      all.insert(all.end(), window.begin(), window.end());
    }
    EXPECT_EQ(all, ids);
  }
  check::expect_error(Errc::invalid, "31 tokens", [&] { (void)cut_into_windows(ids, 32); });
}

TEST(ParallelContext, RefusesWhatCannotBeRead) {
  const c10::InferenceMode inference;
  const auto model = check::letter_model(64);
  const ParallelContext context(model, Ids{1});
  check::expect_error(Errc::invalid, "no tokens",
                      [&] { (void)context.encode(std::vector<Ids>{{1}, {}}); });
  const auto windows = context.encode(std::vector<Ids>{check::letter_ids(60, 1)});
  check::expect_error(Errc::invalid, "no tokens", [&] { (void)context.read(windows, {}); });
  check::expect_error(Errc::full, "64",
                      [&] { (void)context.read(windows, check::letter_ids(10, 2)); });
}

}  // namespace
}  // namespace mneme
