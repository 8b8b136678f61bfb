// Stages that read only some of the entries, against literal loops over the entries of a head.
#include "mneme/core/registry.h"
#include "mneme/kv/head_profile.h"
#include "mneme/kv/paged_kv.h"
#include "mneme/kv/plan.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "../tensor_check.h"
#include "../tiny_models.h"
#include <algorithm>
#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <numeric>

namespace mneme {
namespace {

constexpr std::int64_t kPage = 64;
using List = std::vector<std::int32_t>;

const SelectStage& selecting(const std::unique_ptr<KvStage>& stage) {
  return dynamic_cast<const SelectStage&>(*stage);
}

/// What a stage selects of these pages of keys [P,64,K] for queries [G,K].
SelectStage::Selected select(const SelectStage& stage, const at::Tensor& keys,
                             const at::Tensor& queries, std::int64_t layer = 5,
                             std::int64_t head = 0) {
  const auto K = keys.size(2);
  const auto size = static_cast<std::size_t>(stage.summary_size(layer, K));
  std::vector<std::vector<float>> summaries;
  std::vector<const float*> pointers;
  for (std::int64_t p = 0; p < keys.size(0); ++p) {
    summaries.emplace_back(size, std::numeric_limits<float>::quiet_NaN());
    stage.summarize(layer, head, keys[p].contiguous().const_data_ptr<float>(), K,
                    summaries.back().data());
  }
  for (const auto& summary : summaries) pointers.push_back(summary.data());
  const auto q = queries.contiguous();
  SelectStage::Selected out{{7, 7, 7}, {{1}, {2}, {3}, {4}, {5}}};  // of an earlier call
  stage.select({layer, head, q.size(0), K, q.const_data_ptr<float>(), pointers}, out);
  return out;
}

double number(const at::Tensor& x, at::IntArrayRef at) {
  auto y = x;
  for (const auto i : at) y = y.select(0, i);
  return y.item<float>();
}

/// The first `count` of 0 .. n-1 when sorted by a falling score, ascending; of equals the first.
List highest(std::int64_t n, std::int64_t count, const std::function<double(std::int64_t)>& score) {
  std::vector<double> scores;
  for (std::int64_t i = 0; i < n; ++i) scores.push_back(score(i));
  List order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(std::min(n, count)));
  std::sort(order.begin(), order.end());
  return order;
}

/// q'k over the first r numbers, in double.
double product(const at::Tensor& q, const at::Tensor& k, std::int64_t r) {
  return q.narrow(0, 0, r).to(at::kDouble).dot(k.narrow(0, 0, r).to(at::kDouble)).item<double>();
}

/// The bounds of a page of keys [64,K] as the papers write them.
double min_max_bound(const at::Tensor& keys, const at::Tensor& q) {
  const auto k = keys.accessor<float, 2>();
  double out = 0;
  for (std::int64_t i = 0; i < q.size(0); ++i) {
    const double x = q.accessor<float, 1>()[i];
    double least = k[0][i], greatest = least;
    for (std::int64_t e = 0; e < kPage; ++e) {
      least = std::min<double>(least, k[e][i]);
      greatest = std::max<double>(greatest, k[e][i]);
    }
    out += std::max(x * least, x * greatest);
  }
  return out;
}
double ball_bound(const at::Tensor& keys, const at::Tensor& q) {
  const auto k = keys.to(at::kDouble), mean = k.mean(0);
  const auto farthest = (k - mean).square().sum(1).sqrt().max().item<double>();
  return mean.dot(q.to(at::kDouble)).item<double>() +
         q.to(at::kDouble).square().sum().sqrt().item<double>() * farthest;
}

/// Small whole numbers, whose sums are exact and often equal.
at::Tensor whole(at::IntArrayRef sizes, std::uint64_t seed) {
  return check::normal(sizes, seed).mul(2).round();
}

/// Axes of L layers and H heads that are orthonormal.
std::shared_ptr<HeadProfile> profile(std::int64_t L, std::int64_t H, std::int64_t K,
                                     const std::string& name = "key_pca.post") {
  auto out = std::make_shared<HeadProfile>();
  out->numbers[name] = std::get<0>(at::linalg_qr(check::normal({L, H, K, K}, 77)));
  return out;
}

// ---- what a stage selects ----

TEST(Quest, ABoundIsAboveEveryScoreOfItsPage) {
  for (const std::int64_t K : {8, 24, 64}) {
    for (std::uint64_t seed = 1; seed <= 5; ++seed) {
      const auto keys = check::normal({kPage, K}, seed) + check::normal({1, K}, 50 + seed),
                 q = check::normal({K}, 100 + seed);
      for (const std::string bound : {"min_max", "ball"}) {
        // What the stage holds of the page, met with the query as its header says.
        const auto stage = registry().make<KvStage>("quest(bound=" + bound + ")");
        std::vector<float> held(static_cast<std::size_t>(selecting(stage).summary_size(2, K)));
        selecting(stage).summarize(2, 0, keys.const_data_ptr<float>(), K, held.data());
        double of_held = 0;
        for (std::int64_t i = 0; i < K; ++i) {
          const auto x = number(q, {i});
          const auto at = static_cast<std::size_t>(i);
          of_held += bound == "ball"
                         ? x * held[at]
                         : std::max(x * held[at], x * held[at + static_cast<std::size_t>(K)]);
        }
        if (bound == "ball")
          of_held += q.square().sum().sqrt().item<double>() * held[static_cast<std::size_t>(K)];
        EXPECT_NEAR(of_held, bound == "ball" ? ball_bound(keys, q) : min_max_bound(keys, q), 1e-3);
        for (std::int64_t e = 0; e < kPage; ++e)
          EXPECT_GE(of_held, product(q, keys[e], K) - 1e-4) << bound << " of " << K;
      }
    }
  }
}

TEST(Quest, ReadsThePagesWithTheHighestBounds) {
  for (const std::int64_t G : {1, 3}) {
    for (const std::int64_t K : {8, 64}) {
      const auto keys = check::normal({9, kPage, K}, 3) + check::normal({9, 1, K}, 4),
                 q = check::normal({G, K}, 5);
      for (const std::string bound : {"min_max", "ball"}) {
        for (const std::int64_t pages : {1, 4, 8, 9, 20}) {
          const auto stage = registry().make<KvStage>("quest(bound=" + bound +
                                                      ", pages=" + std::to_string(pages) + ")");
          const auto want = highest(9, pages, [&](std::int64_t p) {
            auto most = -1e30;
            for (std::int64_t g = 0; g < G; ++g)
              most = std::max(
                  most, bound == "ball" ? ball_bound(keys[p], q[g]) : min_max_bound(keys[p], q[g]));
            return most;
          });
          const auto got = select(selecting(stage), keys, q);
          EXPECT_EQ(got.pages, want) << bound << ", " << pages << " of 9";
          EXPECT_TRUE(got.entries.empty());
        }
      }
    }
  }
}

TEST(Quest, LeavesTheFirstLayersWhole) {
  const auto stage = registry().make<KvStage>("quest");
  EXPECT_EQ(selecting(stage).summary_size(0, 64), 0);
  EXPECT_EQ(selecting(stage).summary_size(1, 64), 0);
  EXPECT_EQ(selecting(stage).summary_size(2, 64), 128);
  EXPECT_EQ(selecting(registry().make<KvStage>("quest(skip_layers=0)")).summary_size(0, 64), 128);
}

TEST(Oracle, ReadsTheEntriesWithTheHighestProducts) {
  const auto keys = whole({5, kPage, 16}, 1), q = whole({3, 16}, 2);
  for (const double keep : {0.0, 0.125, 0.25, 0.9375}) {
    const auto stage = registry().make<KvStage>("oracle(keep=" + std::to_string(keep) + ")");
    const auto got = select(selecting(stage), keys, q);
    ASSERT_EQ(got.entries.size(), 3u);
    for (std::int64_t g = 0; g < 3; ++g) {
      EXPECT_EQ(
          got.entries[static_cast<std::size_t>(g)],
          highest(5 * kPage, static_cast<std::int64_t>(keep * 5 * kPage),
                  [&](std::int64_t e) { return product(q[g], keys[e / kPage][e % kPage], 16); }))
          << "head " << g << ", keep " << keep;
    }
  }
  EXPECT_EQ(
      select(selecting(registry().make<KvStage>("oracle(keep=0.01)")), keys, q).entries[0].size(),
      4u)
      << "3.2 entries, rounded up";
}

TEST(Oracle, ReadsWholePagesWhereItKeepsAll) {
  const auto got = select(selecting(registry().make<KvStage>("oracle(keep=1)")),
                          whole({3, kPage, 8}, 1), whole({2, 8}, 2));
  EXPECT_EQ(got.pages, (List{0, 1, 2}));
  EXPECT_TRUE(got.entries.empty());
}

TEST(Loki, RanksByTheFirstCoordinatesOnItsAxes) {
  // Axes that only reorder and turn numbers around leave sums exact.
  const std::int64_t K = 16;
  auto axes = at::zeros({2, 2, K, K});
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    for (std::int64_t head = 0; head < 2; ++head) {
      for (std::int64_t c = 0; c < K; ++c)
        axes[layer][head][(3 * c + 5 * layer + head) % K][(c + 7 * head) % K] = c % 2 ? -1. : 1.;
    }
  }
  HeadProfile numbers;
  numbers.numbers["key_pca.pre"] = axes;
  const auto keys = whole({4, kPage, K}, 1), q = whole({3, K}, 2);
  const auto of_axes = axes.accessor<float, 4>();
  const auto of_keys = keys.accessor<float, 3>();
  const auto of_queries = q.accessor<float, 2>();
  for (const std::int64_t rank : {1, 5, 16, 99}) {
    for (const std::string per : {"query_head", "kv_head"}) {
      const auto stage = registry().make<KvStage>("loki(space=pre, keep=0.125, per=" + per +
                                                  ", rank=" + std::to_string(rank) + ")");
      stage->calibrate(numbers);
      for (std::int64_t layer = 0; layer < 2; ++layer) {
        for (std::int64_t head = 0; head < 2; ++head) {
          const auto on = [&](const auto& x, std::int64_t c) {
            double sum = 0;
            for (std::int64_t i = 0; i < K; ++i) sum += x[i] * of_axes[layer][head][i][c];
            return sum;
          };
          const auto score = [&](std::int64_t g, std::int64_t e) {
            double sum = 0;
            for (std::int64_t c = 0; c < std::min(rank, K); ++c)
              sum += on(of_queries[g], c) * on(of_keys[e / kPage][e % kPage], c);
            return sum;
          };
          const auto got = select(selecting(stage), keys, q, layer, head);
          ASSERT_EQ(got.entries.size(), per == "kv_head" ? 1u : 3u);
          for (std::size_t list = 0; list < got.entries.size(); ++list) {
            const auto want = highest(4 * kPage, 4 * kPage / 8, [&](std::int64_t e) {
              if (per == "query_head") return score(static_cast<std::int64_t>(list), e);
              return std::max({score(0, e), score(1, e), score(2, e)});
            });
            EXPECT_EQ(got.entries[list], want) << per << ", rank " << rank << ", head " << head;
          }
        }
      }
    }
  }
}

TEST(Loki, AllCoordinatesRankAsTheProductsThemselves) {
  const auto keys = check::normal({6, kPage, 32}, 1), q = check::normal({2, 32}, 2);
  const auto loki = registry().make<KvStage>("loki(rank=32, keep=0.25)");
  loki->calibrate(*profile(1, 1, 32));
  const auto got = select(selecting(loki), keys, q, 0).entries;
  ASSERT_EQ(got.size(), 2u);
  for (std::int64_t g = 0; g < 2; ++g) {
    EXPECT_EQ(got[static_cast<std::size_t>(g)], highest(6 * kPage, 6 * kPage / 4, [&](auto e) {
                return product(q[g], keys[e / kPage][e % kPage], 32);
              }));
  }
}

TEST(Loki, RefusesNumbersOfOtherHeads) {
  const auto stage = registry().make<KvStage>("loki");
  check::expect_error(Errc::not_found, "mneme calibrate key_pca",
                      [&] { stage->calibrate(*profile(2, 2, 8, "key_pca.pre")); });
  HeadProfile flat;
  flat.numbers["key_pca.post"] = at::zeros({2, 2, 8});
  check::expect_error(Errc::mismatch, "3 dimensions", [&] { stage->calibrate(flat); });
  stage->calibrate(*profile(2, 2, 8));
  EXPECT_EQ(selecting(stage).summary_size(1, 8), 8 * kPage) << "no more coordinates than there are";
  check::expect_error(Errc::mismatch, "layer 2",
                      [&] { (void)selecting(stage).summary_size(2, 8); });
  check::expect_error(Errc::mismatch, "keys of 16",
                      [&] { (void)selecting(stage).summary_size(1, 16); });
  check::expect_error(Errc::mismatch, "2 heads", [&] {
    (void)select(selecting(stage), whole({1, kPage, 8}, 1), whole({1, 8}, 1), 0, 2);
  });
}

TEST(SelectStages, RefuseBadOptions) {
  for (const auto* spec : {"quest(pages=0)", "quest(bound=max)", "loki(rank=0)", "loki(keep=1.5)",
                           "loki(per=head)", "oracle(keep=-0.1)"})
    check::expect_error(Errc::usage, "", [&] { (void)registry().make<KvStage>(spec); });
  check::expect_error(Errc::usage, "selects entries where another stage does",
                      [] { KvPlan(parse_chain("quest | oracle")); });
}

// ---- what a store reads ----

constexpr std::int64_t kHeads = 2, kGroup = 2, kWidth = 16;
constexpr double kScale = 0.4;

/// The entries of N in one head that each of the queries [G,K] reads.
using Reads = std::function<std::vector<List>(const at::Tensor& keys, const at::Tensor& queries)>;

List newest(std::int64_t N) {
  List out;
  for (auto e = (N - 1) / kPage * kPage; e < N; ++e) out.push_back(static_cast<std::int32_t>(e));
  return out;
}

Reads quest(std::int64_t pages,
            double (*bound)(const at::Tensor&, const at::Tensor&) = min_max_bound) {
  return [pages, bound](const at::Tensor& keys, const at::Tensor& queries) {
    const auto N = keys.size(0);
    const auto chosen = highest((N - 1) / kPage, pages, [&](std::int64_t p) {
      auto most = -1e30;
      for (std::int64_t g = 0; g < queries.size(0); ++g)
        most = std::max(most, bound(keys.narrow(0, p * kPage, kPage), queries[g]));
      return most;
    });
    List entries;
    for (const auto p : chosen) {
      for (std::int32_t i = 0; i < kPage; ++i)
        entries.push_back(p * static_cast<std::int32_t>(kPage) + i);
    }
    for (const auto e : newest(N)) entries.push_back(e);
    return std::vector<List>(static_cast<std::size_t>(queries.size(0)), entries);
  };
}

Reads oracle(double keep) {
  return [keep](const at::Tensor& keys, const at::Tensor& queries) {
    const auto N = keys.size(0), full = (N - 1) / kPage * kPage;
    std::vector<List> out;
    for (std::int64_t g = 0; g < queries.size(0); ++g) {
      out.push_back(highest(full, static_cast<std::int64_t>(keep * static_cast<double>(full)),
                            [&](std::int64_t e) { return product(queries[g], keys[e], kWidth); }));
      for (const auto e : newest(N)) out.back().push_back(e);
    }
    return out;
  };
}

class SelectingStore : public ::testing::Test {
 protected:
  static std::shared_ptr<const KvPlan> plan(const std::string& spec) {
    return std::make_shared<KvPlan>(parse_chain(spec), profile(1, kHeads, kWidth));
  }
  static std::unique_ptr<KvStore> store(std::int64_t rows, const std::string& spec) {
    auto out = registry().make<KvStore>("paged", KvShape{kHeads, kWidth, kWidth, nullptr}, rows);
    out->use(plan(spec), 0, 1);
    return out;
  }
  static std::unique_ptr<KvStore> fork(const KvStore& from) {
    return std::unique_ptr<KvStore>(&dynamic_cast<KvStore&>(*from.fork().release()));
  }
  Call call(const KvStore& to, std::int64_t T, std::vector<std::int64_t> lengths = {},
            std::int64_t back = 0) const {
    Call out;
    out.positions = at::empty({to.rows(), T}, at::kLong);
    for (std::int64_t b = 0; b < to.rows(); ++b)
      out.positions[b].copy_(at::arange(T) + to.seen(b) - back);
    out.lengths = std::move(lengths);
    out.compute = compute_;
    return out;
  }
  void append(KvStore& to, std::int64_t T, std::vector<std::int64_t> lengths = {}) {
    const auto at = call(to, T, std::move(lengths));
    // Neighbours are alike, as in texts, so that pages differ in what they hold.
    const auto around = check::normal({to.rows(), kHeads, 1, kWidth}, ++seed_),
               keys = around + check::normal({to.rows(), kHeads, T, kWidth}, ++seed_),
               values = check::normal({to.rows(), kHeads, T, kWidth}, ++seed_);
    to.append(keys, values, at);
    to.settle();
  }
  /// Every row answers a fresh query as a loop over the entries that it should read, of those within a window.
  void expect_reads(const KvStore& held, const Reads& reads, double tolerance = 1e-5,
                    std::int64_t window = 0) {
    const auto q = check::normal({held.rows(), kHeads * kGroup, 1, kWidth}, ++seed_);
    auto at_end = call(held, 1, {}, 1);
    at_end.pattern.window = window;
    const auto got = held.attend(q, at_end, kScale, true);
    for (std::int64_t b = 0; b < held.rows(); ++b) {
      const auto entries = held.read(b, 0, held.seen(b));
      for (std::int64_t h = 0; h < kHeads; ++h) {
        const auto keys = entries.keys[h], values = entries.values[h],
                   queries = q[b].narrow(0, h * kGroup, kGroup).select(1, 0);
        const auto lists = reads(keys, queries);
        for (std::int64_t g = 0; g < kGroup; ++g) {
          auto sum = at::zeros({kWidth}, at::kDouble);
          double mass = 0;
          const auto& list = lists[static_cast<std::size_t>(g)];
          for (const auto e : list) {
            if (window > 0 && held.seen(b) - 1 - e >= window) continue;
            const auto w = std::exp(kScale * product(queries[g], keys[e], kWidth));
            sum += w * values[e].to(at::kDouble);
            mass += w;
          }
          EXPECT_TRUE(check::close(got.out[b][h * kGroup + g][0], sum / mass, tolerance))
              << "row " << b << ", head " << h << ", query head " << g;
          EXPECT_NEAR(number(got.lse, {b, h * kGroup + g, 0}), std::log(mass), 10 * tolerance);
        }
      }
    }
  }

  Compute compute_ = Compute::f32;
  std::uint64_t seed_ = 1000;
  const c10::NoGradGuard no_gradient_;
};

const std::string kQuest = "quest(pages=2, skip_layers=0)", kOracle = "oracle(keep=0.125)",
                  kLoki = "loki(rank=16, keep=0.125)";

TEST_F(SelectingStore, ReadsWhatIsSelectedAndTheNewestPage) {
  for (const auto& [spec, reads] : {std::pair{kQuest, quest(2)},
                                    {kOracle, oracle(0.125)},
                                    {kLoki, oracle(0.125)},
                                    {std::string("oracle(keep=0.75)"), oracle(0.75)}}) {
    SCOPED_TRACE(spec);
    const auto held = store(2, spec);
    for (const auto& [T, lengths] :
         {std::pair{std::int64_t{300}, std::vector<std::int64_t>{300, 40}},
          {20, {20, 0}},
          {1, {}},
          {150, {64, 150}},
          {1, {1, 0}}}) {
      append(*held, T, lengths);
      expect_reads(*held, reads);
    }
    for (int i = 0; i < 70; ++i) append(*held, 1);  // the newest page, full at some step, too
    append(*held, 64 - held->seen(0) % 64);
    ASSERT_EQ(held->seen(0) % 64, 0);
    expect_reads(*held, reads);
    expect_reads(*held, reads, 1e-5, 333);
  }
}

TEST_F(SelectingStore, ReadsHalfPrecisionPages) {
  compute_ = Compute::automatic;
  for (const auto& [spec, reads] : {std::pair{kQuest, quest(2)}, {kOracle, oracle(0.125)}}) {
    const auto held = store(1, spec);
    append(*held, 400);
    expect_reads(*held, reads, 1e-2);
  }
}

TEST_F(SelectingStore, ReadsEncodedPages) {
  for (const auto& [spec, reads] :
       {std::pair{kQuest, quest(2)}, {kOracle, oracle(0.125)}, {kLoki, oracle(0.125)}}) {
    for (const std::string codec : {"quantize(bits=8)", "quantize(bits=4)"}) {
      SCOPED_TRACE(codec + " | " + spec);
      const auto held = store(2, codec + " | " + spec);
      append(*held, 400, {400, 200});
      append(*held, 3);
      expect_reads(*held, reads, 1e-3);
    }
  }
}

TEST_F(SelectingStore, GoesOnAfterAForkALoadAndARewind) {
  for (const auto& [spec, reads] :
       {std::pair{kQuest, quest(2)}, {kOracle, oracle(0.125)}, {kLoki, oracle(0.125)}}) {
    SCOPED_TRACE(spec);
    const auto parent = store(1, spec);
    append(*parent, 330);
    const auto child = fork(*parent);
    append(*child, 100);
    expect_reads(*child, reads);
    expect_reads(*parent, reads);

    std::string bytes;
    ByteWriter writer(&bytes);
    child->save(writer);
    PagedKv loaded;
    ByteReader reader(bytes);
    loaded.load(reader);
    if (spec == kLoki) {
      check::expect_error(Errc::usage, "mneme calibrate key_pca", [&] {
        (void)loaded.attend(at::zeros({1, kHeads * kGroup, 1, kWidth}), call(loaded, 1, {}, 1),
                            kScale, false);
      });
      loaded.use(plan(spec), 0, 1);
    }
    expect_reads(loaded, reads);

    // What was rewound is written over, in pages that were full before: with a fork that reads them and without.
    child->rewind(150);
    expect_reads(*child, reads);
    append(*child, 150);
    expect_reads(*child, reads);
    child->rewind(150);
    for (int i = 0; i < 3; ++i) append(*child, 50);
    expect_reads(*child, reads);
    expect_reads(*parent, reads);
  }
}

TEST_F(SelectingStore, ForksFollowPlansOfTheirOwn) {
  const auto a = store(1, kQuest);
  append(*a, 350);
  const auto b = fork(*a), c = fork(*a);
  b->use(plan(kOracle), 0, 1);
  c->use(plan("quest(pages=1, bound=ball, skip_layers=0)"), 0, 1);
  expect_reads(*a, quest(2));
  expect_reads(*b, oracle(0.125));
  expect_reads(*c, quest(1, ball_bound));
  b->use(nullptr, 0, 1);
  append(*b, 30);
  b->use(plan(kQuest), 0, 1);
  expect_reads(*b, quest(2));
  expect_reads(*a, quest(2));
}

// ---- models ----

class SelectingModel : public ::testing::Test {
 protected:
  State start(const std::string& plan, std::int64_t B = 1) const {
    auto state = tiny_.model->start(B);
    if (!plan.empty())
      use_plan(state, std::make_shared<KvPlan>(parse_chain(plan), profile(2, 2, 8)));
    return state;
  }
  /// Logits of a chunk and of single tokens after it.
  at::Tensor run(State& state, std::int64_t B, std::int64_t first, std::int64_t T) const {
    const auto ids = check::random_ids(B, T, 50, 3);
    std::vector<at::Tensor> out{tiny_.logits(ids.narrow(1, 0, first), state)};
    for (auto t = first; t < T; ++t) out.push_back(tiny_.logits(ids.narrow(1, t, 1), state));
    return at::cat(out, 1);
  }
  const c10::NoGradGuard no_gradient_;
  const check::TinyModel tiny_{check::kTinyDecoder};
};

TEST_F(SelectingModel, ReadingAllIsFullAttention) {
  for (const auto* spec :
       {"quest(pages=4, skip_layers=0)", "quest(pages=4, bound=ball, skip_layers=0)",
        "quest(pages=1)", "oracle(keep=1)", "loki(rank=8, keep=1)", "loki(rank=1, keep=1)"}) {
    auto full = start("", 2), some = start(spec, 2);
    EXPECT_TRUE(check::identical(run(some, 2, 250, 310), run(full, 2, 250, 310))) << spec;
  }
}

TEST_F(SelectingModel, ReadingLessIsNot) {
  for (const auto* spec : {"quest(pages=1, skip_layers=1)", "oracle(keep=0.01)",
                           "loki(rank=1, keep=0.05)", "quantize | quest(pages=1, skip_layers=0)"}) {
    auto full = start(""), some = start(spec);
    EXPECT_GT(check::rms_error(run(some, 1, 250, 260).narrow(1, 250, 10),
                               run(full, 1, 250, 260).narrow(1, 250, 10)),
              1e-3)
        << spec;
  }
}

TEST_F(SelectingModel, ChunksOfTokensReadEverything) {
  for (const auto* spec : {"quest(pages=1, skip_layers=0)", "oracle(keep=0)", "loki(keep=0)"}) {
    auto full = start(""), some = start(spec);
    EXPECT_TRUE(check::identical(run(some, 1, 250, 250), run(full, 1, 250, 250)));
    const auto more = check::random_ids(1, 70, 50, 9);
    EXPECT_TRUE(check::identical(tiny_.logits(more, some), tiny_.logits(more, full))) << spec;
  }
}

TEST_F(SelectingModel, SelectsWithinAWindow) {
  const std::string window = "window(sinks=3, size=190)";
  for (const auto* spec :
       {"quest(pages=4, skip_layers=0)", "oracle(keep=1)", "loki(rank=8, keep=1)"}) {
    auto plain = start(window), some = start(window + " | " + spec);
    EXPECT_TRUE(check::identical(run(some, 1, 300, 450), run(plain, 1, 300, 450))) << spec;
  }
  for (const auto* spec :
       {"quest(pages=1, skip_layers=0)", "oracle(keep=0.125)", "loki(rank=4, keep=0.125)"}) {
    SCOPED_TRACE(spec);
    auto plain = start(window), some = start(window + " | " + spec);
    EXPECT_GT(check::rms_error(run(some, 1, 300, 450).narrow(1, 300, 150),
                               run(plain, 1, 300, 450).narrow(1, 300, 150)),
              1e-3);
    EXPECT_EQ(kv_usage(some).kept, 193);
    auto child = some.fork(), loaded = State::load(some.save());
    use_plan(loaded,
             std::make_shared<KvPlan>(parse_chain(window + " | " + spec), profile(2, 2, 8)));
    const auto want = run(some, 1, 1, 40);
    EXPECT_TRUE(check::identical(run(child, 1, 1, 40), want));
    EXPECT_TRUE(check::close(run(loaded, 1, 1, 40), want, 1e-5));
  }
}

TEST_F(SelectingModel, RowsOfDifferentLengthsSelectAsAlone) {
  for (const auto* spec :
       {"quest(pages=1, skip_layers=0)", "oracle(keep=0.125)", "loki(rank=4, keep=0.125)"}) {
    auto both = start(spec, 2), alone = start(spec);
    const auto ids = check::random_ids(2, 260, 50, 5);
    (void)tiny_.logits(ids, both, {260, 150});
    (void)tiny_.logits(ids.narrow(0, 1, 1).narrow(1, 0, 150), alone);
    for (int i = 0; i < 5; ++i) {
      const auto next = check::random_ids(2, 1, 50, 60 + i);
      EXPECT_TRUE(check::close(tiny_.logits(next, both).narrow(0, 1, 1),
                               tiny_.logits(next.narrow(0, 1, 1), alone), 1e-5))
          << spec;
    }
  }
}

TEST_F(SelectingModel, AStageWithoutItsNumbersIsRefused) {
  auto state = start("");
  check::expect_error(Errc::usage, "mneme calibrate key_pca",
                      [&] { use_plan(state, std::make_shared<KvPlan>(parse_chain("loki"))); });
}

}  // namespace
}  // namespace mneme
