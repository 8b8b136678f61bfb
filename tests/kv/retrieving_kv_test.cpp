// The store that retrieves, against a plain computation of what it should read, and its stage on a small random decoder.
#include "mneme/kv/retrieving_kv.h"

#include "mneme/core/registry.h"
#include "mneme/kv/plan.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "../tensor_check.h"
#include "../tiny_models.h"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <map>
#include <numeric>

namespace mneme {
namespace {

constexpr std::int64_t kHeads = 2, kGroup = 2, kWidth = 16;
constexpr double kScale = 0.35, kTheta = 500.0;
using Vector = std::vector<double>;

Vector turned(const Vector& x, double position) {
  Vector out(x);
  const auto half = x.size() / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const auto angle =
        position * std::pow(kTheta, -2.0 * static_cast<double>(i) / static_cast<double>(x.size()));
    out[i] = x[i] * std::cos(angle) - x[i + half] * std::sin(angle);
    out[i + half] = x[i + half] * std::cos(angle) + x[i] * std::sin(angle);
  }
  return out;
}

double product(const Vector& a, const Vector& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// InfLLM of one row as its paper describes it, entry by entry, in double.
class Plain {
 public:
  struct Options {
    std::size_t sinks, local, block, topk, representatives, chunk;
    bool per_head = false, original = false;
  };
  explicit Plain(const Options& o) : o_(o) {}

  /// Takes in tokens [H,T,K] at the next positions and answers queries [Hq,T,K]: [Hq,T,K], and lse [Hq,T].
  std::pair<at::Tensor, at::Tensor> step(const at::Tensor& k, const at::Tensor& v,
                                         const at::Tensor& q) {
    const auto T = static_cast<std::size_t>(k.size(1));
    auto out = at::zeros(q.sizes(), at::kDouble),
         lse = at::zeros({q.size(0), q.size(1)}, at::kDouble);
    for (std::size_t t = 0; t < T;) {
      const auto n = std::min(T - t, o_.chunk - keys_.size() % o_.chunk);
      chunk(k, v, q, t, n, out, lse);
      t += n;
    }
    return {out, lse};
  }

  std::vector<std::vector<std::size_t>> chosen;
  std::vector<std::vector<Vector>> vectors;  // of blocks, of query heads

 private:
  static Vector numbers(const at::Tensor& x) {
    const auto y = x.to(at::kDouble).contiguous();
    return {y.const_data_ptr<double>(), y.const_data_ptr<double>() + y.numel()};
  }
  const Vector& far_key(std::size_t j, std::size_t h) const {
    return o_.original ? turned_[j][h] : keys_[j][h];
  }
  Vector far_query(const Vector& q, std::size_t i) const {
    return turned(q, static_cast<double>(o_.original ? i : o_.local - 1));
  }

  void chunk(const at::Tensor& k, const at::Tensor& v, const at::Tensor& q, std::size_t begin,
             std::size_t n, at::Tensor& out, at::Tensor& lse) {
    // What has left the window of the chunk's first query becomes blocks.
    const auto first = keys_.size();
    while (o_.sinks + (vectors.size() + 1) * o_.block + o_.local <= first + 1) make_block();
    for (std::size_t t = begin; t < begin + n; ++t) {
      keys_.emplace_back();
      turned_.emplace_back();
      values_.emplace_back();
      weights_.emplace_back(kHeads * kGroup, 0.0);
      for (std::int64_t h = 0; h < kHeads; ++h) {
        keys_.back().push_back(numbers(k[h][static_cast<std::int64_t>(t)]));
        turned_.back().push_back(
            turned(keys_.back().back(), static_cast<double>(keys_.size() - 1)));
        values_.back().push_back(numbers(v[h][static_cast<std::int64_t>(t)]));
      }
    }
    const auto query = [&](std::size_t g, std::size_t t) {
      return numbers(q[static_cast<std::int64_t>(g)][static_cast<std::int64_t>(begin + t)]);
    };
    if (!vectors.empty() && first + n - 1 >= o_.local) {
      std::vector<Vector> mean(kHeads * kGroup, Vector(kWidth));
      for (std::size_t g = 0; g < mean.size(); ++g) {
        for (std::size_t t = 0; t < n; ++t) {
          const auto x = far_query(query(g, t), first + t);
          for (std::size_t i = 0; i < kWidth; ++i) mean[g][i] += x[i] / static_cast<double>(n);
        }
      }
      chosen.clear();
      for (std::size_t s = 0; s < (o_.per_head ? kHeads : 1); ++s) {
        std::vector<std::pair<double, std::size_t>> scores;
        for (std::size_t b = 0; b < vectors.size(); ++b) {
          double score = 0;
          for (std::size_t g = 0; g < mean.size(); ++g) {
            if (!o_.per_head || g / kGroup == s) score += product(mean[g], rounded_[b][g]);
          }
          scores.emplace_back(-score, b);
        }
        std::sort(scores.begin(), scores.end());
        scores.resize(std::min(scores.size(), o_.topk));
        chosen.emplace_back();
        for (const auto& score : scores) chosen.back().push_back(score.second);
        std::sort(chosen.back().begin(), chosen.back().end());
      }
    }
    for (std::size_t g = 0; g < kHeads * kGroup; ++g) {
      const auto h = g / kGroup;
      for (std::size_t t = 0; t < n; ++t) {
        const auto i = first + t;
        const auto x = query(g, t), near = turned(x, static_cast<double>(i)), far = far_query(x, i);
        std::map<std::size_t, double> scores;  // of the entries that are read
        for (std::size_t j = i + 1 - std::min(o_.local, i + 1); j <= i; ++j)
          scores[j] = kScale * product(near, turned_[j][h]);
        const auto add = [&](std::size_t j) {
          if (j + o_.local <= i) scores[j] = kScale * product(far, far_key(j, h));
        };
        const auto blocked = o_.sinks + vectors.size() * o_.block;
        for (std::size_t j = 0; j < std::min(o_.sinks, i); ++j) add(j);
        for (std::size_t j = blocked; j < i; ++j) add(j);
        for (const auto b :
             chosen.empty() ? std::vector<std::size_t>{} : chosen[o_.per_head ? h : 0]) {
          for (std::size_t e = 0; e < o_.block; ++e) add(o_.sinks + b * o_.block + e);
        }
        double sum = 0;
        for (const auto& [j, score] : scores) sum += std::exp(score);
        const auto at =
            static_cast<std::int64_t>(g) * q.size(1) + static_cast<std::int64_t>(begin + t);
        for (const auto& [j, score] : scores) {
          const auto weight = std::exp(score) / sum;
          if (j + o_.local > i) weights_[j][g] += weight;
          for (std::int64_t d = 0; d < kWidth; ++d)
            out.mutable_data_ptr<double>()[at * kWidth + d] +=
                weight * values_[j][h][static_cast<std::size_t>(d)];
        }
        lse.mutable_data_ptr<double>()[at] = std::log(sum);
      }
    }
  }

  void make_block() {
    const auto first = o_.sinks + vectors.size() * o_.block;
    vectors.emplace_back();
    for (std::size_t g = 0; g < kHeads * kGroup; ++g) {
      std::vector<std::pair<double, std::size_t>> order;
      for (std::size_t j = first; j < first + o_.block; ++j) order.emplace_back(-weights_[j][g], j);
      std::sort(order.begin(), order.end());
      order.resize(std::min(order.size(), o_.representatives));
      Vector mean(kWidth);
      for (const auto& [weight, j] : order) {
        const auto key = far_key(j, g / kGroup);
        for (std::size_t d = 0; d < kWidth; ++d)
          mean[d] += key[d] / static_cast<double>(order.size());
      }
      vectors.back().push_back(mean);
    }
    // They are kept in 8 bits: 32 numbers, which are two heads of 16, share a scale in half precision.
    rounded_.push_back(vectors.back());
    for (std::size_t g = 0; g < kHeads * kGroup; g += 2) {
      double most = 0;
      for (std::size_t d = 0; d < 2 * kWidth; ++d)
        most = std::max(most, std::abs(vectors.back()[g + d / kWidth][d % kWidth]));
      const double scale = static_cast<float>(c10::Half(static_cast<float>(most / 127)));
      for (std::size_t d = 0; d < 2 * kWidth; ++d) {
        auto& x = rounded_.back()[g + d / kWidth][d % kWidth];
        x = scale * std::round(x * 127 / most);
      }
    }
  }

  Options o_;
  std::vector<std::vector<Vector>> keys_, turned_, values_;  // of entries, of heads
  std::vector<std::vector<Vector>> rounded_;                 // the vectors as they read back
  std::vector<std::vector<double>> weights_;                 // of entries, of query heads
};

class RetrievingKvTest : public ::testing::Test {
 protected:
  static std::unique_ptr<RetrievingKv> store(const std::string& spec, std::int64_t rows = 1) {
    const KvShape shape{kHeads, kWidth, kWidth,
                        std::make_shared<Rope>(kWidth, kTheta, RopePairs::halves)};
    const auto stage = registry().make<KvStage>(spec);
    return as_retrieving(dynamic_cast<const RetrieveStage&>(*stage).store(shape, 0, rows));
  }
  template <class Store>
  static std::unique_ptr<RetrievingKv> as_retrieving(std::unique_ptr<Store> from) {
    return std::unique_ptr<RetrievingKv>(&dynamic_cast<RetrievingKv&>(*from.release()));
  }
  struct Tokens {
    at::Tensor k, v, q;
  };
  Tokens tokens(std::int64_t T, std::int64_t B = 1) {
    return {check::normal({B, kHeads, T, kWidth}, ++seed_),
            check::normal({B, kHeads, T, kWidth}, ++seed_),
            check::normal({B, kHeads * kGroup, T, kWidth}, ++seed_)};
  }
  static Partial step(RetrievingKv& to, const Tokens& x, std::vector<std::int64_t> lengths = {},
                      Compute compute = Compute::f32) {
    const auto B = x.k.size(0), T = x.k.size(2);
    Call call;
    call.positions = at::empty({B, T}, at::kLong);
    for (std::int64_t b = 0; b < B; ++b)
      call.positions[b].copy_(at::arange(T, at::kLong) + to.seen(b));
    call.lengths = std::move(lengths);
    call.compute = compute;
    to.append(x.k, x.v, call);
    const auto out = to.attend(x.q, call, kScale, true);
    to.settle();
    return out;
  }
  static std::string save(const RetrievingKv& held) {
    std::string out;
    ByteWriter writer(&out), counter(nullptr);
    held.save(writer);
    held.save(counter);
    EXPECT_EQ(counter.written(), static_cast<std::int64_t>(out.size()));
    return out;
  }
  static std::unique_ptr<RetrievingKv> load(std::string_view bytes) {
    auto out = std::make_unique<RetrievingKv>();
    ByteReader reader(bytes);
    out->load(reader);
    return out;
  }

  std::uint64_t seed_ = 100;
  const c10::NoGradGuard no_gradient_;
};

TEST_F(RetrievingKvTest, EqualsAPlainComputation) {
  struct Case {
    std::string spec;
    Plain::Options options;
  };
  const std::vector<Case> cases{
      {"infllm(sinks=3, local=12, block=5, topk=2, representatives=2, chunk=6)",
       {3, 12, 5, 2, 2, 6}},
      {"infllm(sinks=0, local=8, block=70, topk=1, representatives=4, chunk=8)",
       {0, 8, 70, 1, 4, 8}},
      {"infllm(sinks=70, local=9, block=1, topk=7, representatives=1, chunk=4)",
       {70, 9, 1, 7, 1, 4}},
      {"infllm(sinks=2, local=70, block=8, topk=3, representatives=3, chunk=70, per_head=true)",
       {2, 70, 8, 3, 3, 70, true}},
      {"infllm(sinks=4, local=16, block=4, topk=3, representatives=2, chunk=8, place=original)",
       {4, 16, 4, 3, 2, 8, false, true}}};
  for (const auto& [spec, options] : cases) {
    Plain plain(options);
    const auto held = store(spec);
    std::int64_t with_blocks = 0;
    for (const std::int64_t T : {7, 40, 1, 1, 64, 3, 70, 1, 29, 1, 1}) {
      const auto x = tokens(T);
      const auto got = step(*held, x);
      const auto [out, lse] = plain.step(x.k[0], x.v[0], x.q[0]);
      EXPECT_TRUE(check::close(got.out[0], out, 1e-5)) << spec << " " << held->seen(0);
      EXPECT_TRUE(check::close(got.lse[0], lse, 1e-5)) << spec << " " << held->seen(0);
      ASSERT_EQ(held->chosen(0).size(), plain.chosen.size());
      for (std::size_t s = 0; s < plain.chosen.size(); ++s) {
        EXPECT_EQ(held->chosen(0)[s],
                  std::vector<std::int64_t>(plain.chosen[s].begin(), plain.chosen[s].end()))
            << spec;
        with_blocks += plain.chosen[s].empty() ? 0 : 1;
      }
      EXPECT_LE(held->recent(0) - static_cast<std::int64_t>(options.sinks),
                static_cast<std::int64_t>(options.local + options.block));
    }
    EXPECT_GT(with_blocks, 3) << spec << ": blocks were read";
    for (std::size_t b = 0; b < plain.vectors.size(); ++b) {
      for (std::size_t g = 0; g < kHeads * kGroup; ++g) {
        const auto want = at::tensor(plain.vectors[b][g], at::kDouble);
        const auto got =
            held->vector(0, static_cast<std::int64_t>(b))[static_cast<std::int64_t>(g)];
        // Half of a code of 8 bits, of numbers up to 5.
        EXPECT_LE(check::largest_difference(got, want), 5.0 / 254) << spec << ", block " << b;
      }
    }
  }
}

TEST_F(RetrievingKvTest, CutsAtTheGridChangeNothing) {
  const auto* spec = "infllm(sinks=3, local=24, block=5, topk=2, representatives=2, chunk=12)";
  const auto x = tokens(180);
  const auto whole = store(spec);
  const auto want = step(*whole, x);
  for (const std::vector<std::int64_t>& cuts :
       {std::vector<std::int64_t>{60, 60, 60}, {12, 24, 144}, {36, 12, 12, 12, 108}}) {
    const auto cut = store(spec);
    std::vector<at::Tensor> out;
    for (std::int64_t at = 0; const auto n : cuts) {
      out.push_back(
          step(*cut, {x.k.narrow(2, at, n), x.v.narrow(2, at, n), x.q.narrow(2, at, n)}).out);
      at += n;
    }
    EXPECT_TRUE(check::identical(at::cat(out, 2), want.out));
    EXPECT_EQ(save(*cut), save(*whole));
  }
}

TEST_F(RetrievingKvTest, WhereBlocksLieChangesNoBit) {
  const std::string spec = "infllm(sinks=3, local=24, block=5, topk=3, chunk=12";
  const auto memory = store(spec + ")");
  std::vector<std::unique_ptr<RetrievingKv>> others;
  for (const auto* more : {", disk=true, resident=1)", ", disk=true, resident=2)",
                           ", disk=true, resident=1000)", ", resident=1)"})
    others.push_back(store(spec + more));
  for (const std::int64_t T : {100, 1, 1, 50, 12, 1}) {
    const auto x = tokens(T);
    const auto want = step(*memory, x);
    for (const auto& other : others)
      EXPECT_TRUE(check::identical(step(*other, x).out, want.out)) << other->spec();
  }
  const auto bytes = [](const RetrievingKv& held) {
    return held.allocated_bytes() - held.vector_bytes();
  };
  EXPECT_LT(bytes(*others[0]), bytes(*others[1]));
  EXPECT_LT(bytes(*others[1]), bytes(*others[2]));
}

TEST_F(RetrievingKvTest, ResidentBytesDoNotGrow) {
  const auto held =
      store("infllm(sinks=4, local=64, block=16, topk=2, chunk=32, disk=true, resident=4)");
  std::vector<std::int64_t> bytes;
  for (int round = 0; round < 6; ++round) {
    (void)step(*held, tokens(512), {}, Compute::automatic);
    bytes.push_back(held->allocated_bytes() - held->vector_bytes());
    EXPECT_LE(held->recent(0), 4 + 64 + 16);
  }
  for (const auto n : bytes) EXPECT_EQ(n, bytes.front());
  // Half precision: keys turned and not, and values, in pages of 64; four blocks; weights.
  const std::int64_t number = 2, page = 3 * kHeads * 64 * kWidth * number,
                     block = 2 * kHeads * 16 * kWidth * number;
  EXPECT_LE(bytes.front(), 4 * page + 4 * block + 3 * kHeads * kGroup * 64 * 4);
  EXPECT_EQ(held->blocks(0), (6 * 512 - 4 - 64 + 1) / 16);
  EXPECT_EQ(held->seen(0), 6 * 512);
}

TEST_F(RetrievingKvTest, RowsOfABatchAreAlone) {
  const auto* spec = "infllm(sinks=2, local=16, block=4, topk=2, chunk=8)";
  const auto batch = store(spec, 2), first = store(spec), second = store(spec);
  for (const auto& [T, a, b] :
       {std::array<std::int64_t, 3>{50, 50, 9}, {40, 3, 40}, {1, 1, 1}, {1, 0, 1}, {20, 20, 20}}) {
    const auto x = tokens(T, 2);
    const auto got = step(*batch, x, {a, b});
    const auto one = [&](std::int64_t row, std::int64_t n, RetrievingKv& to) {
      if (n == 0) return;
      const auto part = [&](const at::Tensor& y) { return y.narrow(0, row, 1).narrow(2, 0, n); };
      const auto want = step(to, {part(x.k), part(x.v), part(x.q)});
      EXPECT_TRUE(check::identical(part(got.out), want.out)) << row;
      EXPECT_TRUE(check::identical(part(got.lse), want.lse)) << row;
    };
    one(0, a, *first);
    one(1, b, *second);
  }
  const auto joined = as_retrieving(first->concat({second.get()})),
             swapped = as_retrieving(joined->select({1, 0, 1}));
  const auto x = tokens(30);
  const auto thrice = [&](const at::Tensor& y) { return y.expand({3, -1, -1, -1}).contiguous(); };
  const auto got = step(*swapped, {thrice(x.k), thrice(x.v), thrice(x.q)});
  const auto a = step(*first, x), b = step(*second, x);
  EXPECT_TRUE(check::identical(got.out.narrow(0, 1, 1), a.out));
  EXPECT_TRUE(check::identical(got.out.narrow(0, 0, 1), b.out));
  EXPECT_TRUE(check::identical(got.out.narrow(0, 2, 1), b.out));
  swapped->reset({false, true, false});
  EXPECT_EQ(swapped->seen(1), 0);
  EXPECT_EQ(swapped->blocks(1), 0);
  EXPECT_GT(swapped->blocks(0), 0);
  check::expect_error(Errc::mismatch, "different KV plans", [&] {
    (void)first->concat({store("infllm(sinks=2, local=16, block=4, topk=3, chunk=8)").get()});
  });
}

TEST_F(RetrievingKvTest, ForksGoTheirOwnWays) {
  for (const auto* spec :
       {"infllm(sinks=2, local=16, block=4, topk=2, chunk=8)",
        "infllm(sinks=2, local=16, block=4, topk=2, chunk=8, disk=true, resident=2)"}) {
    const auto held = store(spec), again = store(spec);
    const auto x = tokens(75), y = tokens(41), z = tokens(41);
    (void)step(*held, x);
    (void)step(*again, x);
    auto child = as_retrieving(held->fork());
    const auto of_child = step(*child, y);
    const auto of_parent = step(*held, z);
    EXPECT_TRUE(check::identical(of_parent.out, step(*again, z).out)) << "the child left no trace";
    const auto third = store(spec);
    (void)step(*third, x);
    EXPECT_TRUE(check::identical(of_child.out, step(*third, y).out));
    child.reset();
    const auto w = tokens(30);
    EXPECT_TRUE(check::identical(step(*held, w).out, step(*again, w).out));
  }
}

TEST_F(RetrievingKvTest, SavesAndLoads) {
  for (const auto* spec :
       {"infllm(sinks=2, local=16, block=4, topk=2, chunk=8, refresh=3)",
        "infllm(sinks=2, local=16, block=4, topk=2, chunk=8, per_head=true, disk=true, resident=1)",
        "infllm(sinks=70, local=70, block=4, topk=2, chunk=8, place=original)"}) {
    for (const auto compute : {Compute::f32, Compute::automatic}) {
      for (const std::int64_t n : {0, 5, 150}) {
        const auto held = store(spec, 2);
        (void)step(*held, tokens(n, 2), {n, n / 2}, compute);
        (void)step(*held, tokens(1, 2), {}, compute);
        const auto bytes = save(*held);
        const auto loaded = load(bytes);
        EXPECT_EQ(save(*loaded), bytes) << spec;
        for (const std::int64_t T : {1, 1, 20, 1}) {
          const auto x = tokens(T, 2);
          EXPECT_TRUE(
              check::identical(step(*loaded, x, {}, compute).out, step(*held, x, {}, compute).out))
              << spec;
        }
      }
    }
  }
}

TEST_F(RetrievingKvTest, ReadsBackAndPlaces) {
  const auto* spec = "infllm(sinks=3, local=16, block=4, topk=1000, chunk=8)";
  const auto held = store(spec);
  const auto x = tokens(90);
  (void)step(*held, x);
  const auto all = held->read(0, 0, 90), some = held->read(0, 2, 71);
  EXPECT_TRUE(check::identical(all.keys, x.k[0]));
  EXPECT_TRUE(check::identical(all.values, x.v[0]));
  EXPECT_TRUE(check::identical(some.keys, x.k[0].narrow(1, 2, 69)));
  EXPECT_TRUE(check::identical(some.values, x.v[0].narrow(1, 2, 69)));
  check::expect_error(Errc::invalid, "90", [&] { (void)held->read(0, 5, 91); });
  // Placed without queries nothing is known of weights, but what is read when all blocks are is the same.
  const auto placed = store(spec);
  placed->place(0, all, 0, Compute::f32);
  const auto y = tokens(9);
  EXPECT_TRUE(check::close(step(*placed, y).out, step(*held, y).out, 1e-6));
  EXPECT_EQ(placed->blocks(0), held->blocks(0));
  check::expect_error(Errc::mismatch, "another shape", [&] {
    placed->place(0, {at::zeros({3, 1, kWidth}), at::zeros({3, 1, kWidth})}, 0, Compute::f32);
  });
}

TEST_F(RetrievingKvTest, RewindsWhileNothingHasLeft) {
  const auto* spec = "infllm(sinks=3, local=80, block=4, topk=1000, chunk=8)";
  const auto held = store(spec), straight = store(spec);
  const auto x = tokens(70), lost = tokens(9), y = tokens(30);
  (void)step(*held, x);
  (void)step(*straight, x);
  (void)step(*held, lost);
  held->rewind(9);
  EXPECT_EQ(held->seen(0), 70);
  EXPECT_TRUE(check::identical(step(*held, y).out, step(*straight, y).out));
  check::expect_error(Errc::unsupported, "have left the window", [&] { held->rewind(1); });
  const auto fresh = store(spec);
  (void)step(*fresh, tokens(5));
  check::expect_error(Errc::invalid, "has only 5", [&] { fresh->rewind(6); });
}

TEST_F(RetrievingKvTest, AChoiceServesSoManySteps) {
  const auto held = store("infllm(sinks=2, local=8, block=2, topk=2, chunk=4, refresh=3)"),
             each = store("infllm(sinks=2, local=8, block=2, topk=2, chunk=4)");
  const auto x = tokens(120);
  (void)step(*held, x);
  (void)step(*each, x);
  int changes = 0, changes_of_each = 0;
  auto before = held->chosen(0), before_of_each = each->chosen(0);
  for (int i = 0; i < 30; ++i) {
    const auto y = tokens(1);
    (void)step(*held, y);
    (void)step(*each, y);
    if (i % 3 == 0) {
      changes += held->chosen(0) != before;
    } else {
      EXPECT_EQ(held->chosen(0), before) << i;
    }
    changes_of_each += each->chosen(0) != before_of_each;
    before = held->chosen(0);
    before_of_each = each->chosen(0);
  }
  EXPECT_GT(changes, 5);
  EXPECT_GT(changes_of_each, 15);
}

TEST_F(RetrievingKvTest, LookingOnlyLeavesItAsItIs) {
  const auto held = store("infllm(sinks=2, local=16, block=4, topk=2, chunk=8)");
  (void)step(*held, tokens(70));
  const auto before = save(*held);
  Call call;
  call.positions = check::positions(1, 5, 70);
  call.compute = Compute::f32;
  const auto x = tokens(5);
  const auto looked = held->attend(x.q, call, kScale, true);
  EXPECT_EQ(save(*held), before);
  EXPECT_TRUE(at::isfinite(looked.lse).all().item<bool>());
}

TEST_F(RetrievingKvTest, RefusesWhatItCannotDo) {
  check::expect_error(Errc::usage, "chunk=600 is more than local=512",
                      [] { (void)store("infllm(local=512, chunk=600)"); });
  const auto held = store("infllm(local=8, chunk=4)");
  const auto x = tokens(3);
  Call call;
  call.positions = check::positions(1, 3);
  call.pattern.window = 2;
  held->append(x.k, x.v, call);
  check::expect_error(Errc::unsupported, "a window of its own",
                      [&] { (void)held->attend(x.q, call, kScale, false); });
  check::expect_error(Errc::unsupported, "is not the one", [&] { held->use(nullptr, 0, 1); });
  check::expect_error(Errc::unsupported, "gradients", [&] {
    const c10::AutoGradMode on(true);
    held->append(x.k.clone().set_requires_grad(true), x.v, call);
  });
  check::expect_error(Errc::unsupported, "multiple of 8", [] {
    const auto stage = registry().make<KvStage>("infllm");
    (void)dynamic_cast<const RetrieveStage&>(*stage).store({2, 12, 12, nullptr}, 0, 1);
  });
}

TEST_F(RetrievingKvTest, DamagedBytesNeverCrash) {
  for (const auto* spec :
       {"infllm(sinks=2, local=16, block=4, topk=2, chunk=8)",
        "infllm(sinks=2, local=16, block=4, topk=2, chunk=8, per_head=true, disk=true)"}) {
    const auto held = store(spec);
    (void)step(*held, tokens(60));
    const auto bytes = save(*held);
    for (std::size_t n = 0; n < bytes.size(); n += n < 300 || bytes.size() - n < 300 ? 1 : 97) {
      check::expect_error(Errc::corrupt, "",
                          [&] { (void)load(std::string_view(bytes).substr(0, n)); });
    }
    Generator generator(11);
    int refused = 0, usable = 0;
    for (int round = 0; round < 600; ++round) {
      auto damaged = bytes;
      const auto range = round % 2 ? damaged.size() : std::min<std::size_t>(damaged.size(), 400);
      for (auto flips = 1 + generator.next() % 3; flips > 0; --flips)
        damaged[generator.next() % range] ^= static_cast<char>(1 << generator.next() % 8);
      try {
        auto loaded = load(damaged);
        if (loaded->rows() == 1 && loaded->seen(0) < 1000) {
          (void)step(*loaded, tokens(30));
          (void)save(*loaded);
        }
        ++usable;
      } catch (const Error&) {
        ++refused;
      }
    }
    EXPECT_GT(refused, 100);
    EXPECT_GT(usable, 20);
  }
}

// ---- spans that attention sets off ----

/// The sizes of the spans into which a text is cut, by sums over all pairs of a map A [n,n] of weights.
std::vector<std::int64_t> spans(const at::Tensor& A, std::int64_t sinks, std::int64_t local,
                                std::int64_t lmin, std::int64_t lmax, double iou,
                                std::int64_t left) {
  std::vector<std::int64_t> out;
  for (std::int64_t begin = sinks; sinks + left - begin >= 4 * lmax;) {
    struct Span {
      double score;
      std::int64_t x, y;
    };
    std::vector<Span> all, accepted;
    const auto end = begin + 4 * lmax;
    for (auto x = begin; x < end; ++x) {
      for (auto y = x + lmin - 1; y < std::min(end, x + lmax); ++y) {
        double score = 0;
        for (auto i = x; i <= y; ++i) {
          for (auto j = x; j <= i; ++j)
            score +=
                A[i][j].item<double>() - 1.0 / static_cast<double>(std::min(local, i + 1 - sinks));
        }
        if (score > 0) all.push_back({score, x, y});
      }
    }
    std::sort(all.begin(), all.end(),
              [](const auto& a, const auto& b) { return a.score > b.score; });
    std::vector<int> owner(static_cast<std::size_t>(4 * lmax), -1);
    for (const auto& span : all) {
      bool stands = true;
      for (const auto& better : accepted) {
        double common = 0, either = 0;
        for (auto i = begin; i < end; ++i) {
          const bool a = i >= span.x && i <= span.y, b = i >= better.x && i <= better.y;
          common += a && b;
          either += a || b;
        }
        stands = stands && common / either <= iou;
      }
      if (!stands) continue;
      for (auto i = span.x; i <= span.y; ++i) {
        auto& mine = owner[static_cast<std::size_t>(i - begin)];
        if (mine < 0) mine = static_cast<int>(accepted.size());
      }
      accepted.push_back(span);
    }
    std::vector<std::int64_t> sizes;
    for (std::size_t i = 0; i < owner.size(); ++i) {
      if (i > 0 && owner[i] == owner[i - 1] && sizes.back() < lmax) {
        ++sizes.back();
      } else {
        sizes.push_back(1);
      }
    }
    std::int64_t done = 0;
    for (const auto n : sizes) {
      if (done + n > 3 * lmax) break;
      out.push_back(n);
      done += n;
    }
    begin += done;
  }
  return out;
}

TEST_F(RetrievingKvTest, SpansAreThoseThatAttentionSetsOff) {
  constexpr std::int64_t kLocal = 20, kSinks = 3, kTokens = 170;
  // All is read where it was: weights are those of full attention. Tokens of a topic are alike, so that there are spans.
  const auto held = store(
      "ltri(sinks=3, local=20, budget=100000, lmin=3, lmax=9, iou=0.2, chunk=8, place=original)");
  auto x = tokens(kTokens);
  std::int64_t topic = 0;
  for (std::int64_t t = 0; t < kTokens; ++t) {
    if (t % 11 == 0 || t % 7 == 0) ++topic;
    const auto common = check::normal({kWidth}, 1000 + static_cast<std::uint64_t>(topic));
    x.k.select(2, t).add_(common);
    x.q.select(2, t).add_(common);
  }
  const auto got = step(*held, x);
  const Rope rope(kWidth, kTheta, RopePairs::halves);
  const auto positions = check::positions(1, kTokens);
  const auto q = rope(x.q.to(at::kDouble), positions), k = rope(x.k.to(at::kDouble), positions);
  auto A = at::matmul(q, k.repeat_interleave(kGroup, 1).transpose(2, 3)) * kScale;
  A = A.masked_fill(at::ones({kTokens, kTokens}, at::kBool).tril().logical_not(), -1e30)
          .softmax(-1);
  const auto want = at::matmul(A, x.v.to(at::kDouble).repeat_interleave(kGroup, 1));
  EXPECT_TRUE(check::close(got.out, want, 1e-5)) << "all spans at their places: full attention";

  const auto sizes = spans(A.mean(1)[0], kSinks, kLocal, 3, 9, 0.2, kTokens - kLocal + 1 - kSinks);
  std::vector<std::int64_t> starts;
  auto next = kSinks;
  for (const auto n : sizes) {
    starts.push_back(next);
    next += n;
  }
  EXPECT_EQ(held->block_starts(0), starts);
  EXPECT_GT(starts.size(), 15u);
  EXPECT_GT(std::count_if(sizes.begin(), sizes.end(), [](auto n) { return n >= 3 && n < 9; }), 5)
      << "spans of many lengths";
}

TEST_F(RetrievingKvTest, SpansThatAreReadFitTheBudget) {
  const auto held = store("ltri(sinks=2, local=16, budget=12, lmin=2, lmax=6, chunk=8)"),
             same = store("ltri(sinks=2, local=16, budget=12, lmin=2, lmax=6, chunk=8, disk=true)");
  for (const std::int64_t T : {90, 1, 1, 40, 1}) {
    const auto x = tokens(T);
    EXPECT_TRUE(check::identical(step(*held, x).out, step(*same, x).out));
    auto starts = held->block_starts(0);
    starts.push_back(held->seen(0) - held->recent(0) + 2);
    std::int64_t entries = 0;
    ASSERT_EQ(held->chosen(0).size(), 1u);
    for (const auto s : held->chosen(0)[0])
      entries += starts[static_cast<std::size_t>(s + 1)] - starts[static_cast<std::size_t>(s)];
    EXPECT_LE(entries, 12);
    EXPECT_GE(entries, 7) << "as many as fit";
    const auto loaded = load(save(*held));
    const auto y = tokens(60);
    auto copy = as_retrieving(held->fork());
    EXPECT_TRUE(check::identical(step(*loaded, y).out, step(*copy, y).out));
    EXPECT_EQ(loaded->block_starts(0), copy->block_starts(0));
  }
  check::expect_error(Errc::usage, "none may be more", [] { (void)store("ltri(lmin=9, lmax=8)"); });
  check::expect_error(Errc::usage, "less than lmax", [] { (void)store("ltri(budget=8)"); });
}

// ---- memories that each query finds for itself ----

/// What query `i` of head g reads: window, sinks, entries that fill no block, and its closest memories; in double.
at::Tensor read_memories(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         std::int64_t i, std::int64_t g, std::int64_t bank, std::int64_t topk,
                         double sim, const std::string& place) {
  constexpr std::int64_t kLocal = 16, kSinks = 2;
  const auto h = g / kGroup;
  const auto vector = [](const at::Tensor& x) {
    const auto y = x.to(at::kDouble).contiguous();
    return Vector(y.const_data_ptr<double>(), y.const_data_ptr<double>() + y.numel());
  };
  const auto key = [&](std::int64_t j) { return vector(k[0][h][j]); };
  const auto x = vector(q[0][g][i]);
  const auto near = turned(x, static_cast<double>(i)),
             far = turned(x, static_cast<double>(place == "near" ? kLocal - 1 : i));
  const auto far_key = [&](std::int64_t j) {
    return place == "original" ? turned(key(j), static_cast<double>(j)) : key(j);
  };
  std::map<std::int64_t, double> scores;
  for (auto j = std::max<std::int64_t>(0, i - kLocal + 1); j <= i; ++j)
    scores[j] = kScale * product(near, turned(key(j), static_cast<double>(j)));
  const auto add = [&](std::int64_t j) {
    if (j <= i - kLocal) scores[j] = kScale * product(far, far_key(j));
  };
  for (std::int64_t j = 0; j < kSinks; ++j) add(j);
  for (auto j = kSinks + bank; j < i; ++j) add(j);
  std::vector<std::pair<double, std::int64_t>> closest;
  for (auto j = kSinks; j < kSinks + bank; ++j) {
    // Directions are searched in 8 bits: the 16 numbers of one share a scale in half precision.
    auto direction = far_key(j);
    const auto length = std::sqrt(product(direction, direction));
    double most = 0;
    for (auto& y : direction) most = std::max(most, std::abs(y /= length));
    const double scale = static_cast<float>(c10::Half(static_cast<float>(most / 127)));
    for (auto& y : direction) y = scale * std::round(y * 127 / most);
    const auto cosine = product(far, direction) / std::sqrt(product(far, far));
    if (cosine >= sim) closest.emplace_back(-cosine, j);
  }
  std::sort(closest.begin(), closest.end());
  for (std::size_t c = 0; c < closest.size() && static_cast<std::int64_t>(c) < topk; ++c)
    add(closest[c].second);
  double sum = 0;
  auto out = at::zeros({kWidth}, at::kDouble);
  for (const auto& [j, score] : scores) sum += std::exp(score);
  for (const auto& [j, score] : scores) out += std::exp(score) / sum * v[0][h][j].to(at::kDouble);
  return out;
}

TEST_F(RetrievingKvTest, EveryQueryReadsItsOwnMemories) {
  for (const std::string place : {"near", "zero", "original"}) {
    for (const auto& [topk, sim] :
         {std::pair<std::int64_t, double>{3, -1.0}, {5, 0.3}, {70, 0.1}}) {
      const auto spec = "emt(sinks=2, local=16, chunk=8, topk=" + std::to_string(topk) +
                        ", sim=" + std::to_string(sim) + ", place=" + place;
      const auto held = store(spec + ")"), on_disk = store(spec + ", disk=true, resident=1)");
      const auto x = tokens(260);
      const auto part = [&](std::int64_t begin, std::int64_t n) {
        return Tokens{x.k.narrow(2, begin, n), x.v.narrow(2, begin, n), x.q.narrow(2, begin, n)};
      };
      const auto read_equal = [&](std::int64_t begin, std::int64_t n) {
        const auto got = step(*held, part(begin, n)).out;
        EXPECT_TRUE(check::identical(step(*on_disk, part(begin, n)).out, got));
        return got;
      };
      (void)read_equal(0, 240);
      for (const auto& [begin, n] :
           {std::pair<std::int64_t, std::int64_t>{240, 8}, {248, 1}, {249, 1}, {250, 6}}) {
        // Blocks of 64, of what the chunk's first query does not see in its window.
        const auto bank = (begin - 16 + 1 - 2) / 64 * 64;
        const auto got = read_equal(begin, n);
        ASSERT_EQ(bank, 192);
        for (std::int64_t t = 0; t < n; ++t) {
          for (std::int64_t g = 0; g < kHeads * kGroup; ++g) {
            EXPECT_TRUE(check::close(
                got[0][g][t], read_memories(x.q, x.k, x.v, begin + t, g, bank, topk, sim, place),
                1e-5))
                << spec << ", query " << begin + t << " of head " << g;
          }
        }
      }
      const auto loaded = load(save(*held));
      EXPECT_EQ(save(*loaded), save(*held));
      EXPECT_TRUE(check::identical(step(*loaded, part(0, 9)).out, step(*held, part(0, 9)).out));
    }
  }
}

// ---- as the store of a model ----

class Retrieving : public ::testing::Test {
 protected:
  static State start(const check::TinyModel& tiny, const std::string& plan) {
    auto state = tiny.model->start(1);
    if (!plan.empty()) use_plan(state, std::make_shared<KvPlan>(parse_chain(plan)));
    return state;
  }
  const check::TinyModel tiny_{check::kTinyDecoder};
  const c10::NoGradGuard no_gradient_;
};

TEST_F(Retrieving, ATextThatFitsTheWindowIsReadPlainly) {
  const auto ids = check::random_ids(1, 40, 50, 3);
  auto plain = start(tiny_, ""), own = start(tiny_, "infllm(sinks=2, local=40, block=4, chunk=16)");
  EXPECT_TRUE(check::close(tiny_.logits(ids, own), tiny_.logits(ids, plain), 1e-5));
}

TEST_F(Retrieving, AllBlocksAtTheirOwnPlacesAreFullAttention) {
  const auto ids = check::random_ids(1, 230, 50, 3);
  auto plain = start(tiny_, "");
  const auto want = tiny_.logits(ids, plain);
  for (const auto* plan :
       {"infllm(sinks=3, local=16, block=5, topk=1000, chunk=8, place=original)",
        "infllm(sinks=0, local=30, block=70, topk=1000, chunk=30, place=original, per_head=true)",
        "infllm(sinks=3, local=16, block=5, topk=1000, chunk=8, place=original, disk=true)",
        "ltri(sinks=3, local=16, budget=1000, lmax=16, chunk=8, place=original)",
        "emt(sinks=3, local=16, topk=1000, sim=-1, chunk=8, place=original)"}) {
    auto own = start(tiny_, plan);
    std::vector<at::Tensor> out;
    for (std::int64_t at = 0; const std::int64_t n : {100, 1, 1, 90, 7, 1, 30}) {
      out.push_back(tiny_.logits(ids.narrow(1, at, n), own));
      at += n;
    }
    EXPECT_TRUE(check::close(at::cat(out, 1), want, 1e-5)) << plan;
  }
  auto few = start(tiny_, "infllm(sinks=3, local=16, block=5, topk=2, chunk=8, place=original)");
  EXPECT_FALSE(check::close(tiny_.logits(ids, few), want, 1e-3)) << "what is not read is missed";
}

TEST_F(Retrieving, LayersMayReadTheirWindowAlone) {
  const auto ids = check::random_ids(1, 230, 50, 3);
  const auto run = [&](const std::string& layers) {
    auto state = start(tiny_, "emt(sinks=3, local=16, sim=-1, chunk=8, layers=" + layers + ")");
    const auto out = tiny_.logits(ids, state);
    auto loaded = State::load(state.save());
    EXPECT_TRUE(check::identical(tiny_.logits(ids, loaded), tiny_.logits(ids, state)));
    return out;
  };
  const auto all = run("[]"), both = run("[0, 1]"), first = run("[0]"), none = run("[7]");
  EXPECT_TRUE(check::identical(all, both));
  EXPECT_FALSE(check::close(first, all, 1e-3));
  EXPECT_FALSE(check::close(first, none, 1e-3));
}

TEST_F(Retrieving, ATextGrowsPastTheContext) {
  const check::TinyModel narrow(
      "decoder(vocabulary=50, model=32, layers=2, context=64, mixer=softmax(heads=4, kv_heads=2, "
      "head=8), feed_forward=glu(hidden=48))");
  const auto ids = check::random_ids(1, 300, 50, 3);
  for (const auto* plan : {"", "infllm(sinks=2, local=16, block=4, chunk=8, place=original)"}) {
    auto state = start(narrow, plan);
    check::expect_error(Errc::full, "64 tokens", [&] { (void)narrow.logits(ids, state); });
  }
  auto state = start(narrow, "infllm(sinks=2, local=16, block=4, topk=3, chunk=8)");
  const auto logits = narrow.logits(ids, state);
  EXPECT_TRUE(at::isfinite(logits).all().item<bool>());
  EXPECT_EQ(kv_usage(state).seen, 300);
}

TEST_F(Retrieving, AStateIsSavedForkedAndGoneOnWith) {
  const auto ids = check::random_ids(1, 200, 50, 3), more = check::random_ids(1, 20, 50, 4);
  auto state = start(tiny_, "infllm(sinks=2, local=16, block=4, topk=3, chunk=8)");
  (void)tiny_.logits(ids, state);
  auto loaded = State::load(state.save());
  auto fork = state.fork();
  const auto want = tiny_.logits(more, state);
  EXPECT_TRUE(check::identical(tiny_.logits(more, loaded), want));
  EXPECT_TRUE(check::identical(tiny_.logits(more, fork), want));
  check::expect_error(Errc::unsupported, "have left the window", [&] { state.rewind(1); });
}

}  // namespace
}  // namespace mneme
