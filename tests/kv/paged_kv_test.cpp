// The paged store against a plain list of entries per row; stages in it are tested by contracts/kv_stage_contract.cpp.
#include "mneme/kv/paged_kv.h"

#include "mneme/core/registry.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "../tensor_check.h"
#include <algorithm>
#include <gtest/gtest.h>

namespace mneme {
namespace {

constexpr std::int64_t kHeads = 2, kGroup = 2, kWidth = 16, kPage = 64;
constexpr double kScale = 0.3;

/// All entries of a row, as they were given.
struct Entry {
  at::Tensor k, v;  // [H,K], unrotated; [H,V]
  std::int64_t position;
};
using Row = std::vector<Entry>;

class PagedKvTest : public ::testing::Test {
 protected:
  static KvShape shape() {
    return {kHeads, kWidth, kWidth, std::make_shared<Rope>(kWidth, 500.0, RopePairs::halves)};
  }
  static std::unique_ptr<KvStore> store(std::int64_t rows, const std::string& plan = "") {
    auto out = registry().make<KvStore>("paged", shape(), rows);
    if (!plan.empty()) out->use(std::make_shared<KvPlan>(parse_chain(plan)), 0, 1);
    return out;
  }
  static Call call(at::Tensor positions, std::vector<std::int64_t> lengths = {}) {
    Call out;
    out.positions = std::move(positions);
    out.lengths = std::move(lengths);
    out.compute = Compute::f32;
    return out;
  }
  /// Appends T fresh tokens to every row at its next positions, also to the plain rows.
  void append(KvStore& to, std::vector<Row*> rows, std::int64_t T,
              std::vector<std::int64_t> lengths = {}, Compute compute = Compute::f32) {
    const auto B = static_cast<std::int64_t>(rows.size());
    const auto k = check::normal({B, kHeads, T, kWidth}, ++seed_),
               v = check::normal({B, kHeads, T, kWidth}, ++seed_);
    auto positions = at::empty({B, T}, at::kLong);
    for (std::int64_t b = 0; b < B; ++b) {
      auto& row = *rows[static_cast<std::size_t>(b)];
      const auto first = row.empty() ? 0 : row.back().position + 1;
      for (std::int64_t t = 0; t < T; ++t) positions[b][t] = first + t;
      const auto n = lengths.empty() ? T : lengths[static_cast<std::size_t>(b)];
      for (std::int64_t t = 0; t < n; ++t)
        row.push_back({k[b].select(1, t), v[b].select(1, t), first + t});
    }
    auto c = call(positions, lengths);
    c.compute = compute;
    to.append(k, v, c);
    to.settle();
  }
  /// Attention of one query a head over plain entries, in double.
  static Partial attend(const Row& row, const at::Tensor& q, std::int64_t position,
                        const Pattern& pattern) {
    const auto rope = shape().rope;
    std::vector<at::Tensor> k, v;
    std::vector<std::int64_t> positions;
    for (const auto& entry : row) {
      k.push_back((*rope)(entry.k.to(at::kDouble).view({1, kHeads, 1, kWidth}),
                          at::full({1, 1}, entry.position, at::kLong)));
      v.push_back(entry.v.to(at::kDouble).view({1, kHeads, 1, kWidth}));
      positions.push_back(entry.position);
    }
    if (k.empty()) {
      k.push_back(at::zeros({1, kHeads, 0, kWidth}, at::kDouble));
      v.push_back(k.back());
    }
    const Entries entries{at::cat(k, 2),
                          at::cat(v, 2),
                          at::tensor(positions, at::kLong).view({1, 1, -1}),
                          {},
                          {},
                          {}};
    const auto at_query = at::full({1, 1}, position, at::kLong);
    return attend_plain((*rope)(q.to(at::kDouble), at_query), at_query, {}, entries, pattern,
                        kScale);
  }
  /// The store's rows answer a fresh query as the plain rows do.
  void expect_equal(const KvStore& held, const std::vector<const Row*>& rows,
                    double tolerance = 1e-5, Pattern pattern = {}) {
    const auto B = static_cast<std::int64_t>(rows.size());
    ASSERT_EQ(held.rows(), B);
    const auto q = check::normal({B, kHeads * kGroup, 1, kWidth}, ++seed_);
    auto positions = at::empty({B, 1}, at::kLong);
    for (std::int64_t b = 0; b < B; ++b)
      positions[b][0] = rows[static_cast<std::size_t>(b)]->empty()
                            ? 0
                            : rows[static_cast<std::size_t>(b)]->back().position;
    auto c = call(positions);
    c.pattern = pattern;
    const auto got = held.attend(q, c, kScale, true);
    for (std::int64_t b = 0; b < B; ++b) {
      const auto& row = *rows[static_cast<std::size_t>(b)];
      const auto want =
          attend(row, q.narrow(0, b, 1), positions[b][0].item<std::int64_t>(), pattern);
      EXPECT_TRUE(check::close(got.out.narrow(0, b, 1), want.out, tolerance))
          << "row " << b << " of " << row.size();
      EXPECT_TRUE(row.empty() ? at::isinf(got.lse[b]).all().item<bool>()
                              : static_cast<bool>(
                                    check::close(got.lse.narrow(0, b, 1), want.lse, tolerance)))
          << "row " << b;
      EXPECT_EQ(held.seen(b), static_cast<std::int64_t>(row.size()));
    }
  }
  static std::string save(const KvStore& held) {
    std::string out;
    ByteWriter writer(&out);
    held.save(writer);
    return out;
  }
  static std::unique_ptr<KvStore> load(std::string_view bytes) {
    auto out = std::make_unique<PagedKv>();
    ByteReader reader(bytes);
    out->load(reader);
    return out;
  }
  static std::unique_ptr<KvStore> as_kv(std::unique_ptr<StateStore> from) {
    return std::unique_ptr<KvStore>(&dynamic_cast<KvStore&>(*from.release()));
  }
  static std::unique_ptr<KvStore> fork(const KvStore& from) { return as_kv(from.fork()); }

  std::uint64_t seed_ = 100;
  const c10::NoGradGuard no_gradient_;
};

TEST_F(PagedKvTest, EmptyRowsAnswerNothing) {
  Row a, b;
  const auto held = store(2);
  expect_equal(*held, {&a, &b});
  EXPECT_EQ(held->allocated_bytes(), 0);
  EXPECT_EQ(held->kept(1), 0);
}

TEST_F(PagedKvTest, RaggedRowsEqualTheirEntries) {
  Row a, b, c;
  const auto held = store(3);
  for (const auto& [T, lengths] : {std::pair{std::int64_t{5}, std::vector<std::int64_t>{5, 2, 0}},
                                   {1, {}},
                                   {64, {64, 63, 1}},
                                   {130, {1, 130, 7}},
                                   {3, {0, 0, 3}}}) {
    append(*held, {&a, &b, &c}, T, lengths);
    expect_equal(*held, {&a, &b, &c});
  }
  Pattern window;
  window.window = 9;
  expect_equal(*held, {&a, &b, &c}, 1e-5, window);
  EXPECT_EQ(held->kept(0), static_cast<double>(a.size()));
}

TEST_F(PagedKvTest, ManyQueriesOfRaggedRows) {
  // Outputs and lse of every query of shorter rows, whose padding is left alone.
  Row a, b;
  const auto held = store(2);
  append(*held, {&a, &b}, 90, {90, 40});
  const std::int64_t T = 6;
  const auto q = check::normal({2, kHeads * kGroup, T, kWidth}, 4);
  auto positions = check::positions(2, T, 84);
  positions[1].sub_(50);
  const auto got = held->attend(q, call(positions, {6, 3}), kScale, true),
             unasked = held->attend(q, call(positions, {6, 3}), kScale, false);
  for (std::int64_t r = 0; r < 2; ++r) {
    for (std::int64_t t = 0; t < (r ? 3 : 6); ++t) {
      const auto want = attend(r ? b : a, q.narrow(0, r, 1).narrow(2, t, 1),
                               positions[r][t].item<std::int64_t>(), {});
      EXPECT_TRUE(check::close(got.out.narrow(0, r, 1).narrow(2, t, 1), want.out, 1e-5));
      EXPECT_TRUE(check::close(got.lse.narrow(0, r, 1).narrow(2, t, 1), want.lse, 1e-5));
      EXPECT_TRUE(check::close(unasked.out.narrow(0, r, 1).narrow(2, t, 1), want.out, 1e-5));
    }
  }
  EXPECT_EQ(got.out[1].narrow(1, 3, 3).abs().max().item<float>(), 0)
      << "padding attends to nothing";
}

TEST_F(PagedKvTest, HalfPrecisionPagesTakeHalf) {
  Row a;
  const auto half = store(1), single = store(1);
  append(*half, {&a}, 70, {}, Compute::automatic);
  expect_equal(*half, {&a}, 5e-3);
  Row other;
  append(*single, {&other}, 70);
  EXPECT_EQ(2 * half->allocated_bytes(), single->allocated_bytes());
  EXPECT_EQ(single->allocated_bytes(), 2 * kPage * kHeads * 2 * kWidth * 4) << "two pages a head";
  append(*half, {&a}, 70, {}, Compute::f32);  // another type goes on in pages of its own
  expect_equal(*half, {&a}, 5e-3);
}

TEST_F(PagedKvTest, ForksShareUntilTheyWrite) {
  Row a, b;
  const auto held = store(2);
  append(*held, {&a, &b}, 100);
  const auto bytes = held->allocated_bytes();
  const auto before = save(*held);
  auto child = fork(*held);
  EXPECT_EQ(child->allocated_bytes(), bytes);
  auto a2 = a, b2 = b;
  append(*child, {&a2, &b2}, 1);
  expect_equal(*child, {&a2, &b2});
  EXPECT_EQ(save(*held), before);
  auto grandchild = fork(*child);
  auto a3 = a2, b3 = b2;
  append(*grandchild, {&a3, &b3}, 40);
  append(*held, {&a, &b}, 30);
  append(*child, {&a2, &b2}, 2);
  expect_equal(*held, {&a, &b});
  expect_equal(*child, {&a2, &b2});
  expect_equal(*grandchild, {&a3, &b3});
  child.reset();
  append(*grandchild, {&a3, &b3}, 70);
  expect_equal(*grandchild, {&a3, &b3});
}

TEST_F(PagedKvTest, RewindsAcrossPages) {
  Row a, b;
  const auto held = store(2);
  append(*held, {&a, &b}, 200, {200, 170});
  for (const std::int64_t n : {1, 5, 40, 64, 3, 50}) {
    auto parent = fork(*held);
    const auto before = save(*parent);
    const auto a0 = a, b0 = b;
    held->rewind(n);
    a.resize(a.size() - static_cast<std::size_t>(n));
    b.resize(b.size() - static_cast<std::size_t>(n));
    expect_equal(*held, {&a, &b});
    append(*held, {&a, &b}, 2);  // written over what went, which the parent still reads
    expect_equal(*held, {&a, &b});
    EXPECT_EQ(save(*parent), before);
    expect_equal(*parent, {&a0, &b0});
  }
  // Rewinding and going on leaves no half-filled pages behind, forks or not.
  const auto bytes = held->allocated_bytes();
  for (int i = 0; i < 20; ++i) {
    append(*held, {&a, &b}, 5);
    const auto child = i % 2 ? fork(*held) : nullptr;
    held->rewind(5);
    a.resize(a.size() - 5);
    b.resize(b.size() - 5);
  }
  expect_equal(*held, {&a, &b});
  EXPECT_LE(held->allocated_bytes(), bytes + 2 * kPage * kHeads * 2 * kWidth * 4);
  const auto before = save(*held);
  check::expect_error(Errc::invalid, "only",
                      [&] { held->rewind(static_cast<std::int64_t>(b.size()) + 1); });
  EXPECT_EQ(save(*held), before) << "a refusal changes no row";
  held->rewind(static_cast<std::int64_t>(b.size()));
  a.resize(a.size() - b.size());
  b.clear();
  expect_equal(*held, {&a, &b});
  append(*held, {&a, &b}, 3);
  expect_equal(*held, {&a, &b});
}

TEST_F(PagedKvTest, SelectsRowsAlsoTwice) {
  Row a, b;
  const auto held = store(2);
  append(*held, {&a, &b}, 70, {70, 9});
  auto picked = as_kv(held->select({1, 0, 1}));
  Row b1 = b, a2 = a, b3 = b;
  append(*picked, {&b1, &a2, &b3}, 4);
  expect_equal(*picked, {&b1, &a2, &b3});
  expect_equal(*held, {&a, &b});
}

TEST_F(PagedKvTest, JoinsRowsOfDifferentLengths) {
  Row a, b, c;
  const auto x = store(1), y = store(2);
  append(*x, {&a}, 130);
  append(*y, {&b, &c}, 10, {10, 0});
  auto joined = as_kv(x->concat({y.get()}));
  Row a1 = a, b1 = b, c1 = c;
  append(*joined, {&a1, &b1, &c1}, 3);
  expect_equal(*joined, {&a1, &b1, &c1});
  expect_equal(*x, {&a});
  expect_equal(*y, {&b, &c});
  check::expect_error(Errc::mismatch, "different KV plans",
                      [&] { (void)x->concat({store(1, "quantize").get()}); });
  const auto other =
      registry().make<KvStore>("paged", KvShape{kHeads + 1, kWidth, kWidth, nullptr}, 1);
  check::expect_error(Errc::mismatch, "different models", [&] { (void)x->concat({other.get()}); });
}

TEST_F(PagedKvTest, ResetRowsStartOver) {
  Row a, b;
  const auto held = store(2);
  append(*held, {&a, &b}, 70);
  held->reset({true, false});
  a.clear();
  append(*held, {&a, &b}, 2);
  expect_equal(*held, {&a, &b});
}

TEST_F(PagedKvTest, WhatIsReadCanBePlacedElsewhere) {
  Row a;
  const auto held = store(1);
  append(*held, {&a}, 150);
  const auto slice = held->read(0, 50, 140);
  for (std::int64_t i = 0; i < 90; ++i) {
    EXPECT_TRUE(check::close(slice.keys.select(1, i), a[static_cast<std::size_t>(50 + i)].k, 1e-5));
    EXPECT_TRUE(check::identical(slice.values.select(1, i), a[static_cast<std::size_t>(50 + i)].v));
  }
  // Behind ten other tokens, at positions far away.
  Row b;
  const auto other = store(1);
  append(*other, {&b}, 10);
  other->place(0, slice, 1000, Compute::f32);
  for (std::int64_t i = 0; i < 90; ++i)
    b.push_back(
        {a[static_cast<std::size_t>(50 + i)].k, a[static_cast<std::size_t>(50 + i)].v, 1000 + i});
  expect_equal(*other, {&b});
  const auto again = other->read(0, 10, 100);
  EXPECT_TRUE(check::close(again.keys, slice.keys, 1e-5));
  EXPECT_TRUE(check::identical(again.values, slice.values));
  // At their own positions they are what they were.
  const auto copy = store(1);
  copy->place(0, held->read(0, 0, 150), 0, Compute::f32);
  expect_equal(*copy, {&a});
  EXPECT_EQ(held->read(0, 7, 7).keys.size(1), 0);
}

TEST_F(PagedKvTest, TheOrderOfPlacingDoesNotMatter) {
  Row a;
  const auto held = store(1);
  append(*held, {&a}, 100);
  const auto first = held->read(0, 0, 30), second = held->read(0, 30, 100);
  const auto forward = store(1), backward = store(1);
  forward->place(0, first, 0, Compute::f32);
  forward->place(0, second, 30, Compute::f32);
  backward->place(0, second, 30, Compute::f32);
  backward->place(0, first, 0, Compute::f32);
  expect_equal(*forward, {&a});
  expect_equal(*backward, {&a});
}

TEST_F(PagedKvTest, WhatHeadsKeptCanBePlacedElsewhere) {
  Row from, to;
  const auto held = store(1), other = store(1);
  append(*held, {&from}, 100);
  append(*other, {&to}, 70);
  // Head 0 keeps the tokens 10, 13, ... of tokens 10 to 90, head 1 the first five of them.
  KvSlice kept = held->read(0, 10, 90);
  std::vector<std::int64_t> third, five{0, 1, 2, 3, 4};
  for (std::int64_t i = 0; i < 80; i += 3) third.push_back(i);
  KvSlice ragged{
      at::zeros({kHeads, 27, kWidth}), at::zeros({kHeads, 27, kWidth}), {third, five}, 80};
  for (std::int64_t h = 0; h < kHeads; ++h) {
    const auto& places = ragged.places[static_cast<std::size_t>(h)];
    for (std::size_t i = 0; i < places.size(); ++i) {
      ragged.keys[h][static_cast<std::int64_t>(i)] = kept.keys[h][places[i]];
      ragged.values[h][static_cast<std::int64_t>(i)] = kept.values[h][places[i]];
    }
  }
  other->place(0, ragged, 200, Compute::f32);
  EXPECT_EQ(other->seen(0), 150);
  EXPECT_DOUBLE_EQ(other->kept(0), 70 + (27 + 5) / 2.0);
  // Each head as if it were alone with what it holds.
  const auto q = check::normal({1, kHeads * kGroup, 1, kWidth}, 7);
  const auto got = other->attend(q, call(at::full({1, 1}, 300, at::kLong)), kScale, true);
  for (std::int64_t h = 0; h < kHeads; ++h) {
    Row alone = to;
    for (const auto place : ragged.places[static_cast<std::size_t>(h)]) {
      alone.push_back(from[static_cast<std::size_t>(10 + place)]);
      alone.back().position = 200 + place;
    }
    const auto want = attend(alone, q, 300, {});
    EXPECT_TRUE(check::close(got.out.narrow(1, h * kGroup, kGroup),
                             want.out.narrow(1, h * kGroup, kGroup), 1e-5))
        << "head " << h;
  }
  // It reads back as it was placed, and the heads' difference is told.
  const auto back = other->read_kept(0, 70, 150);
  EXPECT_EQ(back.places, ragged.places);
  EXPECT_EQ(back.tokens(), 80);
  EXPECT_TRUE(check::close(back.keys[0], ragged.keys[0], 1e-5));
  EXPECT_TRUE(check::close(back.values[1].narrow(0, 0, 5), ragged.values[1].narrow(0, 0, 5), 1e-6));
  check::expect_error(Errc::unsupported, "evicted", [&] { (void)other->read(0, 70, 150); });
  // What follows goes on behind it; a fork and a saved store hold the same.
  const auto copy = load(save(*other));
  const auto again = copy->attend(q, call(at::full({1, 1}, 300, at::kLong)), kScale, true);
  EXPECT_TRUE(check::close(again.out, got.out, 0));
  ragged.places[1] = {4, 4};
  check::expect_error(Errc::mismatch, "", [&] { other->place(0, ragged, 0, Compute::f32); });
  ragged.places[1] = {80};
  check::expect_error(Errc::mismatch, "", [&] { other->place(0, ragged, 0, Compute::f32); });
}

TEST_F(PagedKvTest, ProtectedTokensAreNoBusinessOfThePlan) {
  Row whole, before;
  const auto held = store(1), alone = store(1, "k_norm | keep(entries=20, sinks=2, recent=4)");
  append(*held, {&whole}, 30);
  held->protect(30);
  held->use(std::make_shared<KvPlan>(parse_chain("k_norm | keep(entries=20, sinks=2, recent=4)")),
            0, 1);
  // The same 90 tokens behind 30 protected ones and at the start of a store of their own.
  const auto k = check::normal({1, kHeads, 90, kWidth}, 41),
             v = check::normal({1, kHeads, 90, kWidth}, 42);
  for (auto* to : {held.get(), alone.get()}) {
    const auto first = to == held.get() ? 30 : 0;
    to->append(k, v, call(at::arange(first, first + 90).view({1, -1})));
    to->settle();
  }
  EXPECT_DOUBLE_EQ(alone->kept(0), 20);
  EXPECT_DOUBLE_EQ(held->kept(0), 50);
  const auto of_held = held->read_kept(0, 30, 120), of_alone = alone->read_kept(0, 0, 90);
  EXPECT_EQ(of_held.places, of_alone.places);
  EXPECT_TRUE(check::close(of_held.keys, of_alone.keys, 1e-5));
  EXPECT_EQ(held->read(0, 0, 30).keys.size(1), 30);
  const auto copy = load(save(*held));
  append(*copy, {&before}, 60);
  EXPECT_DOUBLE_EQ(copy->kept(0), 50) << "protected in a saved store too";
}

TEST_F(PagedKvTest, WhatThePromptsEndCutsIsEncodedOnceAndFillsItsPages) {
  const auto spec = "k_norm | keep(ratio=0.8, sinks=2, recent=4, when=end) | quantize(bits=4)";
  const auto held = store(1), plain = store(1);
  Row row, same;
  append(*held, {&row}, 640);
  seed_ -= 2;
  append(*plain, {&same}, 640);
  held->use(std::make_shared<KvPlan>(parse_chain(spec)), 0, 1);
  held->finish_prompt();
  ASSERT_DOUBLE_EQ(held->kept(0), 512);
  // All 512 entries of a head lie in 8 full pages of codes.
  EXPECT_EQ(held->allocated_bytes(),
            8 * kHeads * registry().make<Codec>("q4")->bytes(1, kPage, kWidth, kWidth));
  // Once encoded, never again: what reads back is the codec's of the very numbers that came.
  const auto kept = held->read_kept(0, 0, 640), whole = plain->read(0, 0, 640);
  for (std::int64_t h = 0; h < kHeads; ++h) {
    const auto index = at::tensor(kept.places[static_cast<std::size_t>(h)], at::kLong);
    const auto error = (kept.values[h] - whole.values[h].index_select(0, index)).abs().max();
    // A group of numbers of one token spans at most its range in 15 steps, and half of one is lost.
    const auto range = whole.values.abs().max().item<double>() * 2 / 15 / 2;
    EXPECT_LT(error.item<double>(), range * 1.02);
  }
}

TEST_F(PagedKvTest, AFinishedPromptMattersToJoiningOnlyWhereItsEndCuts) {
  const auto joined = [&](const std::string& plan) {
    Row a, b;
    const auto one = store(1, plan), other = store(1, plan);
    append(*one, {&a}, 70);
    append(*other, {&b}, 70);
    one->finish_prompt();
    return as_kv(one->concat({other.get()}))->rows();
  };
  EXPECT_EQ(joined("quantize(bits=8)"), 2);
  check::expect_error(Errc::mismatch, "behind their prompts", [&] {
    (void)joined("k_norm | keep(ratio=0.9, sinks=2, recent=4, when=end) | quantize(bits=8)");
  });
}

TEST_F(PagedKvTest, RefusesSlicesAndRangesThatDoNotFit) {
  Row a;
  const auto held = store(1);
  append(*held, {&a}, 10);
  check::expect_error(Errc::invalid, "10", [&] { (void)held->read(0, 5, 11); });
  check::expect_error(Errc::invalid, "10", [&] { (void)held->read(0, -1, 2); });
  check::expect_error(Errc::invalid, "10", [&] { (void)held->read(0, 5, 4); });
  check::expect_error(Errc::mismatch, "another shape", [&] {
    held->place(0, {at::zeros({kHeads, 2, kWidth + 2}), at::zeros({kHeads, 2, kWidth})}, 0,
                Compute::f32);
  });
  check::expect_error(Errc::mismatch, "another shape", [&] {
    held->place(0, {at::zeros({1, 2, kWidth}), at::zeros({1, 2, kWidth})}, 0, Compute::f32);
  });
  check::expect_error(Errc::mismatch, "another shape", [&] {
    held->place(0, {at::zeros({kHeads, 2, kWidth}), at::zeros({kHeads, 3, kWidth})}, 0,
                Compute::f32);
  });
  expect_equal(*held, {&a});
}

TEST_F(PagedKvTest, AWindowKeepsTheFirstAndTheLast) {
  Row a;
  const auto held = store(1, "window(sinks=3, size=20)");
  for (const std::int64_t n : {10, 1, 100, 1, 1, 1, 64}) {
    append(*held, {&a}, n);
    Row left;
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (i < 3 || i + 20 >= a.size()) left.push_back(a[i]);
    }
    EXPECT_EQ(held->kept(0), static_cast<double>(left.size()));
    const auto q = check::normal({1, kHeads * kGroup, 1, kWidth}, 8);
    const auto position = a.back().position;
    EXPECT_TRUE(check::close(
        held->attend(q, call(at::full({1, 1}, position, at::kLong)), kScale, false).out,
        attend(left, q, position, {}).out, 1e-5));
    EXPECT_LE(held->allocated_bytes(), 3 * kPage * kHeads * 2 * kWidth * 4)
        << "the first page and at most two of the last";
  }
  check::expect_error(Errc::unsupported, "evicted", [&] { (void)held->read(0, 0, 50); });
  check::expect_error(Errc::unsupported, "evicted", [&] { held->rewind(1); });
  const auto last = static_cast<std::int64_t>(a.size());
  EXPECT_TRUE(
      check::close(held->read(0, last - 20, last).keys.select(1, 0), a[a.size() - 20].k, 1e-5))
      << "what is there can be read";
}

TEST_F(PagedKvTest, ScatteredEntriesAreCompacted) {
  const auto entry = kHeads * 2 * kWidth * 4;
  for (const auto* plan : {"every_other(sinks=2, recent=10)", "every_other(sinks=2, recent=100)",
                           "every_other(sinks=0, recent=70) | quantize"}) {
    const bool coded = std::string(plan).find("quantize") != std::string::npos;
    Row a;
    const auto held = store(1, plan);
    append(*held, {&a}, 300);
    auto parent = fork(*held);
    const auto before = save(*parent);
    for (int i = 0; i < 330; ++i) append(*held, {&a}, 1);
    EXPECT_EQ(save(*parent), before);
    Row left;
    const auto recent = std::string(plan).find("recent=100") != std::string::npos ? 100u
                        : coded                                                   ? 70u
                                                                                  : 10u;
    const auto sinks = coded ? 0u : 2u;
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (i < sinks || i + recent >= a.size() || i % 2 == 0) left.push_back(a[i]);
    }
    EXPECT_EQ(held->kept(0), static_cast<double>(left.size())) << plan;
    const auto q = check::normal({1, kHeads * kGroup, 1, kWidth}, 8);
    EXPECT_TRUE(check::close(
        held->attend(q, call(at::full({1, 1}, a.back().position, at::kLong)), kScale, false).out,
        attend(left, q, a.back().position, {}).out, coded ? 2e-2 : 1e-5))
        << plan;
    EXPECT_LE(held->allocated_bytes(), static_cast<std::int64_t>(left.size() + 3 * kPage) * entry)
        << plan << ": pages are full but for a few";
  }
}

TEST_F(PagedKvTest, EncodedPagesAreSmallAndNear) {
  for (const auto& [plan, tolerance, most] :
       {std::tuple{"quantize(bits=8)", 1e-2, 0.35}, {"quantize(bits=4)", 0.12, 0.25}}) {
    Row a, b;
    const auto coded = store(2, plan), plain = store(2);
    append(*coded, {&a, &b}, 640, {640, 600});
    Row x, y;
    append(*plain, {&x, &y}, 640, {640, 600});
    expect_equal(*coded, {&a, &b}, tolerance);
    EXPECT_LT(static_cast<double>(coded->allocated_bytes()),
              most * static_cast<double>(plain->allocated_bytes()))
        << plan;
    EXPECT_TRUE(check::close(coded->read(1, 0, 600).values,
                             at::stack(
                                 [&] {
                                   std::vector<at::Tensor> v;
                                   for (const auto& entry : b) v.push_back(entry.v);
                                   return v;
                                 }(),
                                 1),
                             tolerance));
    // Rewinding into an encoded page and going on.
    coded->rewind(100);
    a.resize(a.size() - 100);
    b.resize(b.size() - 100);
    append(*coded, {&a, &b}, 90);
    expect_equal(*coded, {&a, &b}, tolerance);
    check::expect_error(Errc::unsupported, "cannot change its codec",
                        [&] { coded->use(nullptr, 0, 1); });
  }
}

TEST_F(PagedKvTest, AnEncodedPageIsUsedAsItReadsBackFromTheFirstTime) {
  Row a;
  const auto held = store(1, "quantize(bits=4)");
  append(*held, {&a}, 64);
  const auto q = check::normal({1, kHeads * kGroup, 1, kWidth}, 8);
  const auto c = call(at::full({1, 1}, 63, at::kLong));
  const auto first = held->attend(q, c, kScale, false).out;
  EXPECT_TRUE(check::identical(load(save(*held))->attend(q, c, kScale, false).out, first));
  EXPECT_FALSE(check::close(first, attend(a, q, 63, {}).out, 1e-4)) << "the codec was at work";
}

TEST_F(PagedKvTest, EncodedPagesAttendAsTheyReadBack) {
  // What a store reads back of its entries [begin, end), which are known to stand at the positions of `as`.
  const auto read_back = [](const KvStore& held, const Row& as, std::size_t begin,
                            std::size_t end) {
    const auto slice =
        held.read(0, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end));
    Row out;
    for (auto i = begin; i < end; ++i) {
      const auto at = static_cast<std::int64_t>(i - begin);
      out.push_back({slice.keys.select(1, at), slice.values.select(1, at), as[i].position});
    }
    return out;
  };
  // One query, and many.
  const auto expect_attends = [&](const KvStore& held, const Row& row, const std::string& what) {
    for (const std::int64_t T : {1, 2, 40}) {
      const auto q = check::normal({1, kHeads * kGroup, T, kWidth}, ++seed_);
      const auto first = row.back().position + 1 - T;
      for (const std::int64_t window : {0, 33}) {
        auto c = call(check::positions(1, T, first));
        c.pattern.window = window;
        const auto got = held.attend(q, c, kScale, true);
        for (std::int64_t t = 0; t < T; ++t) {
          const auto want = attend(row, q.narrow(2, t, 1), first + t, c.pattern);
          EXPECT_TRUE(check::close(got.out.narrow(2, t, 1), want.out, 1e-5)) << what << " " << t;
          EXPECT_TRUE(check::close(got.lse.narrow(2, t, 1), want.lse, 1e-5)) << what << " " << t;
        }
      }
    }
  };
  for (const std::string stage : {"quantize(bits=8)", "quantize(bits=4)"}) {
    Row a;
    const auto held = store(1, stage);
    append(*held, {&a}, 200);
    expect_attends(*held, read_back(*held, a, 0, a.size()), stage);
    auto child = fork(*held);
    Row b = a;
    append(*child, {&b}, 60);
    expect_attends(*child, read_back(*child, b, 0, b.size()), stage + ", a fork");
    held->rewind(30);  // into the third page
    a.resize(a.size() - 30);
    expect_attends(*held, read_back(*held, a, 0, a.size()), stage + ", rewound");
    append(*held, {&a}, 100);
    expect_attends(*held, read_back(*held, a, 0, a.size()), stage + ", gone on");
    expect_attends(*child, read_back(*child, b, 0, b.size()), stage + ", the fork still");

    Row c;
    const auto windowed = store(1, "window(sinks=3, size=150) | " + stage);
    append(*windowed, {&c}, 64);
    for (const std::int64_t n : {100, 7, 64, 1, 90}) {
      append(*windowed, {&c}, n);
      const auto recent = std::max<std::size_t>(3, c.size() < 150 ? 0 : c.size() - 150);
      Row left = read_back(*windowed, c, 0, 3);
      for (auto& entry : read_back(*windowed, c, recent, c.size()))
        left.push_back(std::move(entry));
      expect_attends(*windowed, left, stage + ", a window after " + std::to_string(c.size()));
    }
  }
}

TEST_F(PagedKvTest, SavesAndLoads) {
  for (const auto* plan : {"", "window(sinks=3, size=70)", "quantize",
                           "every_other(sinks=2, recent=20) | quantize(bits=4)"}) {
    Row a, b;
    const auto held = store(2, plan);
    append(*held, {&a, &b}, 150, {150, 20});
    append(*held, {&a, &b}, 1);
    const auto bytes = save(*held);
    const auto loaded = load(bytes);
    EXPECT_EQ(save(*loaded), bytes) << plan;
    const auto q = check::normal({2, kHeads * kGroup, 1, kWidth}, 8);
    auto positions = at::tensor({150, 20}, at::kLong).view({2, 1});
    EXPECT_TRUE(check::identical(loaded->attend(q, call(positions), kScale, false).out,
                                 held->attend(q, call(positions), kScale, false).out))
        << plan;
    EXPECT_EQ(loaded->seen(0), 151);
    EXPECT_EQ(loaded->kept(1), held->kept(1));
    const auto seed = seed_;
    Row x = a, y = b;
    append(*held, {&a, &b}, 80);
    seed_ = seed;
    append(*loaded, {&x, &y}, 80);
    EXPECT_EQ(save(*loaded), save(*held)) << plan << ": goes on the same";
  }
}

TEST_F(PagedKvTest, TruncatedBytesAreRefused) {
  Row a;
  const auto held = store(1, "window(sinks=1, size=70) | quantize");
  append(*held, {&a}, 80);
  const auto bytes = save(*held);
  for (std::size_t n = 0; n < bytes.size(); n += n < 200 || bytes.size() - n < 200 ? 1 : 37) {
    check::expect_error(Errc::corrupt, "",
                        [&] { (void)load(std::string_view(bytes).substr(0, n)); });
  }
}

TEST_F(PagedKvTest, DamagedBytesNeverCrash) {
  // Without the State's checksum, which catches every flip: whatever loads must be safe to use.
  for (const auto* plan :
       {"", "window(sinks=1, size=70) | quantize(bits=4)", "every_other(sinks=1, recent=5)"}) {
    Row a;
    const auto held = store(1, plan);
    append(*held, {&a}, 80);
    const auto bytes = save(*held);
    Generator generator(11);
    int refused = 0, usable = 0;
    for (int round = 0; round < 1500; ++round) {
      auto damaged = bytes;
      // Headers and counts stand first: half of the flips go there.
      const auto range = round % 2 ? damaged.size() : std::min<std::size_t>(damaged.size(), 400);
      for (auto flips = 1 + generator.next() % 3; flips > 0; --flips)
        damaged[generator.next() % range] ^= static_cast<char>(1 << generator.next() % 8);
      try {
        auto loaded = load(damaged);
        ++usable;
        for (std::int64_t row = 0; row < loaded->rows(); ++row) {
          (void)loaded->kept(row);
          const auto last = loaded->seen(row);
          try {
            const auto slice = loaded->read(row, std::max<std::int64_t>(0, last - 5), last);
            if (loaded->rows() == 1 && slice.keys.size(2) == slice.values.size(2)) {
              (void)loaded->attend(at::ones({1, slice.keys.size(0), 1, slice.keys.size(2)}),
                                   call(at::full({1, 1}, last, at::kLong)), kScale, true);
            }
          } catch (
              const Error&) {  // evicted entries, or another damage that is noticed when it is met
          }
        }
        auto child = fork(*loaded);
        (void)save(*child);
        child->rewind(std::min<std::int64_t>(child->seen(0), 2000));
        (void)save(*child);
      } catch (const Error&) {
        ++refused;
      }
    }
    EXPECT_GT(refused, 300) << plan;
    EXPECT_GT(usable, 20) << plan;
  }
}

TEST_F(PagedKvTest, AStateNoticesEveryFlip) {
  State state;
  auto held = store(1);
  Row a;
  append(*held, {&a}, 3);
  state.child("layers.0").set("kv", std::move(held));
  state.positions = {3};
  const auto bytes = state.save();
  for (std::size_t bit = 0; bit < bytes.size() * 8; bit += bit < 800 ? 1 : 13) {
    auto damaged = bytes;
    damaged[bit / 8] ^= static_cast<char>(1 << bit % 8);
    check::expect_error(Errc::corrupt, "", [&] { (void)State::load(damaged); });
  }
}

class LiveKvTest : public PagedKvTest {
 protected:
  /// Appends tensors that carry gradients, or numbers in double.
  void append_live(KvStore& to, std::vector<Row*> rows, std::int64_t T,
                   std::vector<std::int64_t> lengths = {}) {
    const c10::AutoGradMode on(true);
    const auto B = static_cast<std::int64_t>(rows.size());
    const auto k = check::normal({B, kHeads, T, kWidth}, ++seed_).set_requires_grad(true),
               v = check::normal({B, kHeads, T, kWidth}, ++seed_).set_requires_grad(true);
    leaves_ = {k, v};
    auto positions = at::empty({B, T}, at::kLong);
    for (std::int64_t b = 0; b < B; ++b) {
      auto& row = *rows[static_cast<std::size_t>(b)];
      const auto first = row.empty() ? 0 : row.back().position + 1;
      for (std::int64_t t = 0; t < T; ++t) positions[b][t] = first + t;
      const auto n = lengths.empty() ? T : lengths[static_cast<std::size_t>(b)];
      for (std::int64_t t = 0; t < n; ++t)
        row.push_back({k.detach()[b].select(1, t), v.detach()[b].select(1, t), first + t});
    }
    to.append(k, v, call(positions, lengths));
    to.settle();
  }
  std::vector<at::Tensor> leaves_;
};

TEST_F(LiveKvTest, EqualsThePagedForm) {
  Row a, b;
  const auto held = store(2);
  append(*held, {&a, &b}, 70, {70, 3});  // paged first
  append_live(*held, {&a, &b}, 5, {5, 2});
  expect_equal(*held, {&a, &b});
  append(*held, {&a, &b}, 4, {1, 4});  // what follows stays with it
  expect_equal(*held, {&a, &b});
  auto child = fork(*held);
  auto a1 = a, b1 = b;
  append_live(*child, {&a1, &b1}, 2);
  expect_equal(*child, {&a1, &b1});
  expect_equal(*held, {&a, &b});
  child->detach();
  expect_equal(*child, {&a1, &b1});
  EXPECT_EQ(child->read(0, 0, 78).keys.size(1), 78) << "pages again";
  append(*child, {&a1, &b1}, 80);
  expect_equal(*child, {&a1, &b1});
}

TEST_F(LiveKvTest, CarriesGradients) {
  Row a;
  const auto held = store(1);
  append_live(*held, {&a}, 6);
  const auto q = check::normal({1, kHeads * kGroup, 1, kWidth}, 4);
  const c10::AutoGradMode on(true);
  held->attend(q, call(at::full({1, 1}, 5, at::kLong)), kScale, false).out.sum().backward();
  for (const auto& leaf : leaves_) {
    ASSERT_TRUE(leaf.grad().defined());
    EXPECT_GT(leaf.grad().abs().min().item<float>(), 0) << "of every entry";
  }
}

TEST_F(LiveKvTest, RewindsSelectsJoinsResetsSaves) {
  Row a, b;
  const auto held = store(2);
  append_live(*held, {&a, &b}, 9, {9, 6});
  held->rewind(2);
  a.resize(7);
  b.resize(4);
  expect_equal(*held, {&a, &b});
  append_live(*held, {&a, &b}, 3);
  expect_equal(*held, {&a, &b});
  auto picked = as_kv(held->select({1, 1, 0}));
  expect_equal(*picked, {&b, &b, &a});
  Row c;
  const auto other = store(1);
  append_live(*other, {&c}, 20);
  auto joined = as_kv(held->concat({other.get()}));
  expect_equal(*joined, {&a, &b, &c});
  auto loaded = load(save(*joined));
  expect_equal(*loaded, {&a, &b, &c});
  joined->reset({false, true, false});
  b.clear();
  append_live(*joined, {&a, &b, &c}, 2);
  expect_equal(*joined, {&a, &b, &c});
  check::expect_error(Errc::unsupported, "gradients", [&] { (void)held->read(0, 0, 1); });
  check::expect_error(Errc::unsupported, "gradients", [&] {
    held->place(0, {at::zeros({kHeads, 1, kWidth}), at::zeros({kHeads, 1, kWidth})}, 0,
                Compute::f32);
  });
  check::expect_error(Errc::unsupported, "", [&] { held->rewind(100); });
  check::expect_error(Errc::mismatch, "", [&] { (void)held->concat({store(1).get()}); });
}

TEST_F(LiveKvTest, APlanActsOnceEntriesArePaged) {
  Row a;
  const auto held = store(1, "window(sinks=2, size=5) | quantize");
  append_live(*held, {&a}, 30);
  EXPECT_EQ(held->kept(0), 30) << "a dropped entry would cut its gradient";
  held->detach();
  EXPECT_EQ(held->kept(0), 7);
}

}  // namespace
}  // namespace mneme
