#include "mneme/search/dense_index.h"

#include "mneme/core/error.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <limits>
#include <numeric>
#include <random>

namespace mneme {
namespace {

std::vector<float> unit_vectors(std::int64_t n, std::int64_t d, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<std::size_t>(n * d));
  for (std::int64_t i = 0; i < n; ++i) {
    double squares = 0;
    for (std::int64_t j = 0; j < d; ++j)
      squares += std::pow(out[static_cast<std::size_t>(i * d + j)] = normal(random), 2);
    for (std::int64_t j = 0; j < d; ++j)
      out[static_cast<std::size_t>(i * d + j)] /= static_cast<float>(std::sqrt(squares));
  }
  return out;
}

std::vector<std::int64_t> ids_from(std::int64_t first, std::int64_t n, std::int64_t step = 1) {
  std::vector<std::int64_t> out;
  for (std::int64_t i = 0; i < n; ++i) out.push_back(first + i * step);
  return out;
}

double cosine(const std::vector<float>& x, std::int64_t row, const std::vector<float>& q) {
  double sum = 0;
  for (std::size_t j = 0; j < q.size(); ++j)
    sum += static_cast<double>(x[static_cast<std::size_t>(row) * q.size() + j]) * q[j];
  return sum;
}

std::vector<std::int64_t> nearest(const std::vector<std::int64_t>& ids, const std::vector<float>& x,
                                  const std::vector<float>& q, std::size_t k) {
  std::vector<std::int64_t> rows = ids_from(0, static_cast<std::int64_t>(ids.size()));
  std::stable_sort(rows.begin(), rows.end(),
                   [&](auto a, auto b) { return cosine(x, a, q) > cosine(x, b, q); });
  std::vector<std::int64_t> out;
  for (std::size_t i = 0; i < std::min(k, rows.size()); ++i)
    out.push_back(ids[static_cast<std::size_t>(rows[i])]);
  return out;
}

std::vector<std::int64_t> ids_of(const std::vector<Neighbour>& found) {
  std::vector<std::int64_t> out;
  for (const auto& n : found) out.push_back(n.id);
  return out;
}

template <class F>
Errc code_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.code();
  }
  ADD_FAILURE() << "nothing was thrown";
  return Errc::io;
}

TEST(DenseIndex, WorkedCase) {
  DenseIndex index(2);
  index.add(std::vector<std::int64_t>{7, 3, 9}, std::vector<float>{1, 0, 0, 1, 0.6F, 0.8F});
  const std::vector<float> query = {1, 0};
  const auto found = index.search(query, 2);
  EXPECT_EQ(ids_of(found), (std::vector<std::int64_t>{7, 9}));
  EXPECT_FLOAT_EQ(found[0].cosine, 1);
  EXPECT_FLOAT_EQ(found[1].cosine, 0.6F);
  EXPECT_EQ(index.cosines(query, std::vector<std::int64_t>{3, 9}), (std::vector<float>{0, 0.6F}));
  EXPECT_EQ(index.kind(), "Flat");
  EXPECT_EQ(index.search(query, 100).size(), 3U);
  EXPECT_TRUE(index.search(query, 0).empty());
}

TEST(DenseIndex, FlatIsBruteForce) {
  for (const auto& [n, d] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {17, 3}, {1000, 13}, {999, 384}}) {
    const auto x = unit_vectors(n, d, 1), queries = unit_vectors(20, d, 2);
    const auto ids = ids_from(5, n, 3);
    DenseIndex index(d);
    index.add(ids, x);
    for (int q = 0; q < 20; ++q) {
      const std::vector<float> query(queries.begin() + q * d, queries.begin() + (q + 1) * d);
      if (d == 1) continue;  // all cosines are 1 or -1: no order to compare
      const auto found = index.search(query, 10);
      ASSERT_EQ(ids_of(found), nearest(ids, x, query, 10)) << n << " x " << d;
      for (const auto& f : found) ASSERT_NEAR(f.cosine, cosine(x, (f.id - 5) / 3, query), 1e-5);
    }
  }
}

TEST(DenseIndex, EqualCosinesAreOrderedById) {
  DenseIndex index(2);
  index.add(std::vector<std::int64_t>{9, 4, 6}, std::vector<float>{0, 1, 0, 1, 0, 1});
  EXPECT_EQ(ids_of(index.search(std::vector<float>{0, 1}, 3)),
            (std::vector<std::int64_t>{4, 6, 9}));
}

TEST(DenseIndex, RestrictedSearchIsExactOverThoseIds) {
  for (const char* factory : {"Flat", "HNSW16"}) {
    const auto x = unit_vectors(500, 16, 3);
    const auto ids = ids_from(0, 500);
    DenseIndex index(16, {.factory = factory});
    index.add(ids, x);
    index.build_graph();
    ASSERT_EQ(index.kind(), factory);
    const std::vector<float> query = unit_vectors(1, 16, 4);
    std::vector<std::int64_t> within = ids_from(1, 100, 5), all = nearest(ids, x, query, 500), want;
    for (const auto id : all) {
      if (id % 5 == 1 && want.size() < 30) want.push_back(id);
    }
    within.push_back(1);       // twice
    within.push_back(99'999);  // unknown
    EXPECT_EQ(ids_of(index.search(query, 30, &within)), want) << factory;
  }
}

TEST(DenseIndex, RemovedIdsAreGoneAndMayComeBack) {
  for (const char* factory : {"Flat", "HNSW16"}) {
    const auto x = unit_vectors(300, 8, 5);
    DenseIndex index(8, {.factory = factory});
    index.add(ids_from(0, 300), x);
    index.build_graph();
    EXPECT_EQ(index.remove(ids_from(0, 150, 2)), 150);
    EXPECT_EQ(index.remove(ids_from(0, 150, 2)), 0);
    EXPECT_EQ(index.size(), 150);
    EXPECT_EQ(index.kind(), "Flat");
    index.build_graph();
    EXPECT_FALSE(index.contains(0));
    for (const auto& f : index.search(unit_vectors(1, 8, 6), 300)) EXPECT_EQ(f.id % 2, 1);
    index.add(std::vector<std::int64_t>{0}, std::vector<float>(x.begin(), x.begin() + 8));
    EXPECT_EQ(index.search(std::vector<float>(x.begin(), x.begin() + 8), 1)[0].id, 0);
  }
}

TEST(DenseIndex, BecomesAGraphAtItsSizeAndFindsNearlyTheSame) {
  const std::int64_t n = 3000, d = 24;
  const auto x = unit_vectors(n, d, 7);
  const auto ids = ids_from(100, n);
  DenseIndex index(d, {.graph_from = 1000});
  for (std::int64_t i = 0; i < n; i += 300) {
    index.add(
        std::span(ids).subspan(static_cast<std::size_t>(i), 300),
        std::span(x).subspan(static_cast<std::size_t>(i * d), static_cast<std::size_t>(300 * d)));
    // New vectors are linked into a graph that is there.
    EXPECT_EQ(index.build_graph(), i + 300 == 1200);
    EXPECT_EQ(index.kind(), i + 300 >= 1000 ? "HNSW32" : "Flat");
  }
  std::size_t hits = 0;
  for (unsigned q = 0; q < 50; ++q) {
    const auto query = unit_vectors(1, d, 1000 + q);
    const auto want = nearest(ids, x, query, 10), got = ids_of(index.search(query, 10));
    for (const auto id : want)
      hits += static_cast<std::size_t>(std::count(got.begin(), got.end(), id));
  }
  EXPECT_GE(hits, 490U);  // of 500
  // Below the threshold it is a scan and stays one.
  index.remove(ids_from(100, 2500));
  EXPECT_FALSE(index.build_graph());
  EXPECT_EQ(index.kind(), "Flat");
  EXPECT_TRUE(index.graph().empty());
}

TEST(DenseIndex, WrongInputIsRefusedAndChangesNothing) {
  DenseIndex index(2);
  const std::vector<float> east = {1, 0};
  index.add(std::vector<std::int64_t>{1}, east);
  const auto add = [&](std::vector<std::int64_t> ids, std::vector<float> x) {
    return [&index, ids, x] { index.add(ids, x); };
  };
  EXPECT_EQ(code_of(add({2, 1}, {1, 0, 1, 0})), Errc::invalid);
  EXPECT_EQ(code_of(add({2, 2}, {1, 0, 1, 0})), Errc::invalid);
  EXPECT_EQ(code_of(add({-2}, {1, 0})), Errc::invalid);
  EXPECT_EQ(code_of(add({2}, {1, 0, 0})), Errc::invalid);
  EXPECT_EQ(code_of(add({2}, {2, 0})), Errc::invalid);
  EXPECT_EQ(code_of(add({2}, {0, 0})), Errc::invalid);
  EXPECT_EQ(code_of(add({2}, {std::numeric_limits<float>::quiet_NaN(), 0})), Errc::invalid);
  EXPECT_EQ(code_of(add({2}, {std::numeric_limits<float>::infinity(), 0})), Errc::invalid);
  EXPECT_EQ(index.size(), 1);
  EXPECT_FALSE(index.contains(2));
  EXPECT_EQ(code_of([&] { (void)index.search(std::vector<float>{1}, 1); }), Errc::invalid);
  EXPECT_EQ(code_of([&] { (void)index.search(std::vector<float>{3, 0}, 1); }), Errc::invalid);
  EXPECT_EQ(code_of([&] { (void)index.cosines(east, std::vector<std::int64_t>{5}); }),
            Errc::not_found);
  EXPECT_EQ(code_of([] { DenseIndex(0); }), Errc::invalid);
  EXPECT_EQ(code_of([] { DenseIndex(4, {.factory = "IVF16,PQ4"}); }), Errc::invalid);
  EXPECT_EQ(code_of([] { DenseIndex(4, {.factory = "HNSW"}); }), Errc::invalid);
  EXPECT_EQ(code_of([] { DenseIndex(4, {.factory = "HNSW1"}); }), Errc::invalid);
  EXPECT_EQ(code_of([] { DenseIndex(4, {.search_breadth = 0}); }), Errc::invalid);
  EXPECT_TRUE(DenseIndex(2).search(east, 5).empty());
}

class KeptGraph : public ::testing::Test {
 protected:
  static constexpr std::int64_t kN = 800, kD = 12;
  void SetUp() override {
    index_.add(ids_, x_);
    index_.build_graph();
    graph_ = index_.graph();
  }
  DenseIndex restore(std::string_view graph) {
    return DenseIndex::restore(kD, {.factory = "HNSW8"}, ids_, x_, graph);
  }
  std::vector<std::int64_t> ids_ = ids_from(10, kN, 2);
  std::vector<float> x_ = unit_vectors(kN, kD, 8);
  DenseIndex index_{kD, {.factory = "HNSW8"}};
  std::string graph_;
};

TEST_F(KeptGraph, GivesTheSameAnswersInAnyOrderOfVectors) {
  // The embeddings may come in another order than they were added in.
  std::vector<std::int64_t> ids(ids_.rbegin(), ids_.rend());
  std::vector<float> x;
  for (std::int64_t i = kN - 1; i >= 0; --i)
    x.insert(x.end(), x_.begin() + i * kD, x_.begin() + (i + 1) * kD);
  auto restored = DenseIndex::restore(kD, {.factory = "HNSW8"}, ids, x, graph_);
  EXPECT_EQ(restored.kind(), "HNSW8");
  for (unsigned q = 0; q < 50; ++q) {
    const auto query = unit_vectors(1, kD, 2000 + q);
    EXPECT_EQ(ids_of(restored.search(query, 10)), ids_of(index_.search(query, 10)));
  }
  EXPECT_EQ(restored.graph(), graph_);
  restored.add(std::vector<std::int64_t>{1}, unit_vectors(1, kD, 9));
  EXPECT_EQ(restored.search(unit_vectors(1, kD, 9), 1)[0].id, 1);
}

TEST_F(KeptGraph, OfOtherSpansOrKindIsAMismatch) {
  auto ids = ids_;
  ids[5] = 1;
  EXPECT_EQ(code_of([&] { DenseIndex::restore(kD, {.factory = "HNSW8"}, ids, x_, graph_); }),
            Errc::mismatch);
  EXPECT_EQ(code_of([&] { DenseIndex::restore(kD, {.factory = "HNSW16"}, ids_, x_, graph_); }),
            Errc::mismatch);
  EXPECT_EQ(code_of([&] {
              DenseIndex::restore(kD, {.factory = "HNSW8"}, std::span(ids_).first(5),
                                  std::span(x_).first(5 * kD), graph_);
            }),
            Errc::mismatch);
  EXPECT_EQ(DenseIndex::restore(kD, {.factory = "Flat"}, ids_, x_, graph_).kind(), "Flat");
  // Without its graph the index scans until somebody builds one.
  auto scanning = restore("");
  EXPECT_EQ(scanning.kind(), "Flat");
  EXPECT_TRUE(scanning.build_graph());
  EXPECT_EQ(scanning.kind(), "HNSW8");
}

TEST_F(KeptGraph, ForgedBytesNeverLeadOutside) {
  EXPECT_EQ(code_of([&] { restore(graph_.substr(0, 10)); }), Errc::corrupt);
  EXPECT_EQ(code_of([&] { restore(graph_.substr(0, graph_.size() - 4)); }), Errc::corrupt);
  EXPECT_EQ(code_of([&] { restore(graph_ + "more"); }), Errc::corrupt);
  EXPECT_EQ(code_of([&] { restore("junk" + graph_); }), Errc::corrupt);
  // Every single field wrong in turn, and many random changes: an Error, or an index that answers.
  std::mt19937 random(10);
  const auto query = unit_vectors(1, kD, 11);
  const auto survives = [&](const std::string& bytes) {
    try {
      const auto index = restore(bytes);
      for (const auto& f : index.search(query, 20)) ASSERT_TRUE(index_.contains(f.id));
    } catch (const Error& e) {
      ASSERT_TRUE(e.code() == Errc::corrupt || e.code() == Errc::mismatch) << e.what();
    }
  };
  for (std::size_t at = 0; at + 4 <= 32; at += 4) {
    for (const std::uint32_t value : {0U, 1U, 0x7FFFFFFFU, 0x80000000U, 0xFFFFFFFFU}) {
      auto bytes = graph_;
      std::memcpy(bytes.data() + at, &value, 4);
      survives(bytes);
    }
  }
  for (int i = 0; i < 2000; ++i) {
    auto bytes = graph_;
    for (auto n = random() % 4 + 1; n > 0; --n)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    survives(bytes);
  }
  // A link to a vector that has not the level is found.
  const auto links = 32 + static_cast<std::size_t>(kN) * 9;
  auto bytes = graph_;
  const std::int32_t beyond = kN;
  std::memcpy(bytes.data() + links, &beyond, 4);
  EXPECT_EQ(code_of([&] { restore(bytes); }), Errc::corrupt);
}

}  // namespace
}  // namespace mneme
