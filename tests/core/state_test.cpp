#include "mneme/core/state.h"

#include "mneme/core/checksum.h"
#include "mneme/core/error.h"
#include "mneme/core/registry.h"

#include <ATen/ATen.h>

#include <gtest/gtest.h>
#include <random>

namespace mneme {
namespace {

using Tapes = std::vector<std::vector<std::int64_t>>;

std::unique_ptr<StateStore> tapes(const Tapes& rows) {
  std::string bytes;
  ByteWriter out(&bytes);
  out.value(static_cast<std::uint64_t>(rows.size()));
  for (const auto& row : rows) {
    out.value(static_cast<std::uint64_t>(row.size()));
    for (auto x : row) out.value(x);
  }
  auto store = registry().make<StateStore>("tape_store");
  ByteReader in(bytes);
  store->load(in);
  return store;
}

Tapes contents(const StateStore& store) {
  std::string bytes;
  ByteWriter out(&bytes);
  store.save(out);
  ByteReader in(bytes);
  Tapes rows(in.count());
  for (auto& row : rows) {
    row.resize(in.count());
    for (auto& x : row) x = in.value<std::int64_t>();
  }
  return rows;
}

/// A state with everything in it: two rows, tensors of several types, a store, children in children, counters.
State full_state() {
  State s{{"S", at::arange(12, at::kFloat).view({2, 2, 3})},
          {"half", at::full({2, 1}, 1.5, at::kBFloat16)}};
  s.set("none", at::empty({2, 0, 4}, at::kLong));
  s.set("flags", at::tensor({1, 0}, at::kByte).to(at::kBool));
  s.set("tape", tapes({{1, 2, 3}, {4}}));
  s.child("layers.0").set("k", at::ones({2, 5}, at::kDouble));
  s.child("layers.0").child("inner").set("tape", tapes({{}, {7, 8}}));
  (void)s.child("layers.1");
  s.counter("seen") = 17;
  s.positions = {3, 1};
  s.generator = Generator(5, 6);
  s.choices = {{"expert", 2, 3}, {"kept", -1, 1ll << 40}};
  s.header = {"llama", "keep(0.5)", "abcd", "bf16", "avx512", 3};
  return s;
}

/// A state that can be rewound: only stores.
State rewindable() {
  State s;
  s.child("layers.0").set("kv", tapes({{1, 2, 3}, {4, 5}}));
  s.child("layers.1").set("kv", tapes({{6, 7, 8}, {9, 10}}));
  s.positions = {3, 2};
  s.counter("seen") = 5;
  return s;
}

template <class Body>
Errc refusal(Body body) {
  try {
    body();
  } catch (const Error& e) {
    EXPECT_GT(std::string(e.what()).size(), 10u);
    return e.code();
  }
  ADD_FAILURE() << "was accepted";
  return Errc::usage;
}

const State& constant(const State& s) { return s; }

TEST(State, LoadGivesBackWhatWasSaved) {
  const auto s = full_state();
  const auto bytes = s.save();
  EXPECT_EQ(s.bytes(), static_cast<std::int64_t>(bytes.size()));
  const auto back = State::load(bytes);
  EXPECT_EQ(back.save(), bytes);
  EXPECT_EQ(back.names(), s.names());
  EXPECT_TRUE(at::equal(back.tensor("S"), s.tensor("S")));
  EXPECT_EQ(back.tensor("half").scalar_type(), at::kBFloat16);
  EXPECT_EQ(back.tensor("none").sizes(), (std::vector<std::int64_t>{2, 0, 4}));
  EXPECT_TRUE(back.tensor("flags")[0].item<bool>());
  EXPECT_EQ(contents(back.store("tape")), (Tapes{{1, 2, 3}, {4}}));
  EXPECT_EQ(contents(back.child("layers.0").child("inner").store("tape")), (Tapes{{}, {7, 8}}));
  EXPECT_TRUE(back.child("layers.1").empty());
  EXPECT_EQ(State(back.fork()).counter("seen"), 17);
  EXPECT_EQ(back.positions, s.positions);
  EXPECT_EQ(back.generator, s.generator);
  EXPECT_EQ(back.choices, s.choices);
  EXPECT_EQ(back.header, s.header);
}

TEST(State, BytesIsTheSizeOfSaveForAnyContents) {
  std::mt19937 random(2);
  for (int i = 0; i < 50; ++i) {
    State s;
    for (auto n = random() % 4; n > 0; --n)
      s.set("t" + std::to_string(n), at::zeros({1, static_cast<std::int64_t>(random() % 9)}));
    for (auto n = random() % 3; n > 0; --n)
      s.child("c" + std::to_string(n)).set("x", tapes({std::vector<std::int64_t>(random() % 7)}));
    for (auto n = random() % 3; n > 0; --n) s.counter(std::string(random() % 20, 'n')) = 1;
    s.choices.resize(random() % 3);
    ASSERT_EQ(s.bytes(), static_cast<std::int64_t>(s.save().size()));
  }
  EXPECT_EQ(State().bytes(), static_cast<std::int64_t>(State().save().size()));
  EXPECT_TRUE(State::load(State().save()).empty());
}

TEST(State, SavesViewsByTheirValues) {
  State s{{"S", at::arange(6, at::kFloat).view({2, 3}).t()}};
  EXPECT_TRUE(at::equal(State::load(s.save()).tensor("S"), s.tensor("S")));
}

TEST(State, TruncatedAtAnyByteIsCorrupt) {
  const auto bytes = full_state().save();
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    ASSERT_EQ(refusal([&] { (void)State::load(bytes.substr(0, n)); }), Errc::corrupt) << n;
  }
  EXPECT_EQ(refusal([&] { (void)State::load(bytes + '\0'); }), Errc::corrupt);
}

TEST(State, AnyFlippedBitIsCorrupt) {
  auto bytes = full_state().save();
  for (std::size_t i = 0; i < bytes.size() * 8; ++i) {
    bytes[i / 8] ^= static_cast<char>(1 << (i % 8));
    ASSERT_EQ(refusal([&] { (void)State::load(bytes); }), Errc::corrupt) << i;
    bytes[i / 8] ^= static_cast<char>(1 << (i % 8));
  }
}

/// What an attacker can do: damage with a correct checksum. Nothing but Error comes out, and nothing huge is allocated.
TEST(State, DamageUnderACorrectChecksumIsRefusedOrHarmless) {
  const auto good = full_state().save();
  std::mt19937 random(11);
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    auto bytes = good.substr(0, good.size() - 4);
    for (auto n = 1 + random() % 3; n > 0; --n) {
      const auto at = 8 + random() % (bytes.size() - 8);
      switch (random() % 3) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = random() % 2 ? '\xff' : '\x7f';
          break;
        default:
          bytes.resize(at);
      }
      if (bytes.size() < 12) break;
    }
    const auto sum = crc32c(std::as_bytes(std::span(bytes)));
    bytes.append(reinterpret_cast<const char*>(&sum), 4);
    try {
      const auto state = State::load(bytes);
      ASSERT_EQ(state.bytes(), static_cast<std::int64_t>(state.save().size()));
    } catch (const Error& e) {
      ASSERT_TRUE(e.code() == Errc::corrupt || e.code() == Errc::unsupported) << e.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

/// Bytes of a state with one tensor entry whose header is given.
std::string with_tensor(std::int8_t type, const std::vector<std::int64_t>& sizes,
                        std::size_t contents) {
  const auto empty = State().save();
  auto bytes = empty.substr(0, empty.size() - 4 - 24);  // up to the number of tensors
  ByteWriter out(&bytes);
  out.value(std::uint64_t{1});
  out.string("x");
  out.value(type);
  out.value(static_cast<std::uint64_t>(sizes.size()));
  for (auto size : sizes) out.value(size);
  bytes.append(contents, '\2');
  out.value(std::uint64_t{0});
  out.value(std::uint64_t{0});
  out.value(crc32c(std::as_bytes(std::span(bytes))));
  return bytes;
}

TEST(State, ImpossibleTensorsAreRefusedBeforeTheyAreMade) {
  const auto f32 = static_cast<std::int8_t>(at::kFloat);
  EXPECT_NO_THROW((void)State::load(with_tensor(f32, {2, 3}, 24)));
  const auto load = [](std::string bytes) { return refusal([&] { (void)State::load(bytes); }); };
  EXPECT_EQ(load(with_tensor(f32, {-1}, 0)), Errc::corrupt);
  EXPECT_EQ(load(with_tensor(f32, {1ll << 40}, 8)), Errc::corrupt);
  EXPECT_EQ(load(with_tensor(f32, {1ll << 32, 1ll << 32}, 0)), Errc::corrupt);
  EXPECT_EQ(load(with_tensor(f32, {1ll << 62}, 0)), Errc::corrupt);
  EXPECT_EQ(load(with_tensor(f32, {0, 1ll << 62, 1ll << 62}, 0)), Errc::corrupt);
  EXPECT_EQ(load(with_tensor(f32, std::vector<std::int64_t>(9, 1), 4)), Errc::corrupt);
  EXPECT_EQ(load(with_tensor(static_cast<std::int8_t>(at::kComplexFloat), {1}, 8)), Errc::corrupt);
  EXPECT_EQ(load(with_tensor(-1, {1}, 8)), Errc::corrupt);
  EXPECT_EQ(load(with_tensor(static_cast<std::int8_t>(at::kBool), {1}, 1)), Errc::corrupt)
      << "2 is no truth value";
}

TEST(State, UnknownFormatsAndStoresAreNamed) {
  auto bytes = State().save();
  bytes[4] = 9;
  bytes.resize(bytes.size() - 4);
  const auto sum = crc32c(std::as_bytes(std::span(bytes)));
  bytes.append(reinterpret_cast<const char*>(&sum), 4);
  try {
    (void)State::load(bytes);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Errc::mismatch);
    EXPECT_STREQ(e.what(), "stored state has format 9, this program reads format 1");
  }
  EXPECT_EQ(refusal([] { (void)State::load("SQLite format 3"); }), Errc::corrupt);
}

TEST(State, NestingIsLimited) {
  State root;
  State* at = &root;
  for (int i = 0; i < 100; ++i) at = &at->child("deeper");
  EXPECT_EQ(refusal([&] { (void)State::load(root.save()); }), Errc::corrupt);
}

TEST(State, ForksNeverSeeEachOther) {
  auto a = full_state();
  const auto before = a.save();
  auto b = a.fork();
  EXPECT_EQ(b.save(), before);
  EXPECT_EQ(constant(a).tensor("S").const_data_ptr(), constant(b).tensor("S").const_data_ptr())
      << "shared until written";
  b.tensor("S").add_(100);
  b.child("layers.0").tensor("k").zero_();
  b.child("layers.0").child("inner").store("tape").rewind(1);
  b.store("tape").reset({true, false});
  b.child("layers.7").set("new", at::ones({2}));
  b.counter("seen") = 0;
  b.positions[0] = 99;
  b.choices.clear();
  (void)b.generator.next();
  EXPECT_EQ(a.save(), before) << "the first does not see the second";
  const auto changed = b.save();
  a.tensor("S").add_(1);
  a.tensor("half").zero_();
  a.store("tape").rewind(1);
  a.child("layers.0").set("k", at::zeros({1}));
  a.counter("other") = 1;
  EXPECT_EQ(b.save(), changed) << "nor the second the first";
  EXPECT_EQ(contents(b.store("tape")), (Tapes{{}, {4}}));
}

TEST(State, ForkOfAForkAndWritesAfterTheOtherIsGone) {
  auto a = full_state();
  const auto before = a.save();
  {
    auto b = a.fork();
    auto c = b.fork();
    b.tensor("S").zero_();
    EXPECT_EQ(c.save(), before);
    c.store("tape").rewind(2);
    EXPECT_EQ(a.save(), before);
  }
  const auto* where = constant(a).tensor("S").const_data_ptr();
  a.tensor("S").zero_();
  EXPECT_EQ(constant(a).tensor("S").const_data_ptr(), where) << "alone again: written in place";
}

TEST(State, DetachedForksDoNotShareMemory) {
  const auto weight = at::ones({2}).set_requires_grad(true);
  State a{{"S", weight * 2}};
  auto b = a.fork();
  b.detach();
  EXPECT_FALSE(constant(b).tensor("S").requires_grad());
  EXPECT_TRUE(constant(a).tensor("S").requires_grad());
  b.tensor("S").zero_();
  EXPECT_TRUE(at::equal(constant(a).tensor("S"), at::full({2}, 2.f)));
  constant(a).tensor("S").sum().backward();
  EXPECT_TRUE(at::equal(weight.grad(), at::full({2}, 2.f)));
}

TEST(State, RewindsStoresAndPositions) {
  auto s = rewindable();
  auto other = s.fork();
  s.rewind(0);
  s.rewind(2);
  EXPECT_EQ(s.positions, (std::vector<std::int64_t>{1, 0}));
  EXPECT_EQ(contents(s.child("layers.0").store("kv")), (Tapes{{1}, {}}));
  EXPECT_EQ(contents(s.child("layers.1").store("kv")), (Tapes{{6}, {}}));
  EXPECT_EQ(s.counter("seen"), 5) << "counters survive";
  EXPECT_EQ(contents(other.child("layers.1").store("kv")), (Tapes{{6, 7, 8}, {9, 10}}));
}

TEST(State, RewindThatCannotBeDoneChangesNothing) {
  auto s = rewindable();
  const auto before = s.save();
  EXPECT_EQ(refusal([&] { s.rewind(3); }), Errc::invalid) << "a row has only two tokens";
  EXPECT_EQ(refusal([&] { s.rewind(-1); }), Errc::invalid);
  EXPECT_EQ(s.save(), before);
  s.child("layers.2").set("S", at::ones({2, 2}));
  const auto with_tensor = s.save();
  try {
    s.rewind(1);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Errc::unsupported);
    EXPECT_NE(std::string(e.what()).find("'S'"), std::string::npos) << e.what();
  }
  EXPECT_EQ(s.save(), with_tensor) << "the layers before the one that refuses are as they were";
  auto glued = rewindable();
  glued.child("layers.1").set("kv", tapes({{-1, 2, 3}, {4, 5}}));
  const auto glued_before = glued.save();
  EXPECT_EQ(refusal([&] { glued.rewind(1); }), Errc::unsupported);
  EXPECT_EQ(glued.save(), glued_before);
}

TEST(State, SelectTakesRows) {
  const auto s = full_state();
  const auto picked = s.select({1, 0, 1});
  EXPECT_EQ(picked.rows(), 3);
  EXPECT_EQ(picked.positions, (std::vector<std::int64_t>{1, 3, 1}));
  EXPECT_TRUE(at::equal(picked.tensor("S"),
                        at::stack({s.tensor("S")[1], s.tensor("S")[0], s.tensor("S")[1]})));
  EXPECT_EQ(contents(picked.store("tape")), (Tapes{{4}, {1, 2, 3}, {4}}));
  EXPECT_EQ(contents(picked.child("layers.0").child("inner").store("tape")),
            (Tapes{{7, 8}, {}, {7, 8}}));
  EXPECT_EQ(picked.header, s.header);
  auto changed = s.select({0, 1});
  changed.tensor("S").zero_();
  EXPECT_EQ(s.save(), full_state().save());
  EXPECT_EQ(refusal([&] { (void)s.select({2}); }), Errc::invalid);
  EXPECT_EQ(refusal([&] { (void)s.select({-1}); }), Errc::invalid);
}

TEST(State, ConcatJoinsRowsOfDifferentLengths) {
  const auto s = full_state();
  const auto one = s.select({0}), two = s.select({1, 0});
  const auto joined = State::concat({&one, &two});
  EXPECT_EQ(joined.rows(), 3);
  EXPECT_EQ(joined.positions, (std::vector<std::int64_t>{3, 1, 3}));
  EXPECT_TRUE(at::equal(joined.tensor("S"), at::cat({one.tensor("S"), two.tensor("S")})));
  EXPECT_EQ(contents(joined.store("tape")), (Tapes{{1, 2, 3}, {4}, {1, 2, 3}}));
  EXPECT_EQ(joined.select({0}).tensor("S").sum().item<float>(),
            one.tensor("S").sum().item<float>());
  auto alone = State::concat({&s});
  alone.tensor("S").zero_();
  EXPECT_TRUE(at::equal(s.tensor("S"), full_state().tensor("S"))) << "a join of one is a copy too";
  EXPECT_TRUE(State::concat({}).empty());
}

TEST(State, ConcatOfAFreshAndAFedStateKeepsRowsAndPositionsTogether) {
  State fresh{{"S", at::zeros({2, 3})}}, fed{{"S", at::ones({1, 3})}};
  fed.positions = {7};
  EXPECT_EQ(State::concat({&fresh, &fed}).positions, (std::vector<std::int64_t>{0, 0, 7}));
}

TEST(State, ConcatRefusesWhatDoesNotBelongTogether) {
  State a{{"S", at::zeros({1, 3})}}, other_name{{"Z", at::zeros({1, 3})}},
      other_size{{"S", at::zeros({1, 4})}}, other_type{{"S", at::zeros({1, 3}, at::kDouble)}};
  for (const auto* b : {&other_name, &other_size, &other_type}) {
    EXPECT_EQ(refusal([&] { (void)State::concat({&a, b}); }), Errc::mismatch);
  }
}

TEST(State, ResetStartsRowsOver) {
  auto s = full_state();
  const auto other = s.fork();
  s.reset({false, true});
  EXPECT_EQ(s.positions, (std::vector<std::int64_t>{3, 0}));
  EXPECT_TRUE(at::equal(s.tensor("S")[0], other.tensor("S")[0]));
  EXPECT_EQ(s.tensor("S")[1].abs().max().item<float>(), 0.f);
  EXPECT_EQ(contents(s.store("tape")), (Tapes{{1, 2, 3}, {}}));
  EXPECT_EQ(contents(s.child("layers.0").child("inner").store("tape")), (Tapes{{}, {}}));
  EXPECT_EQ(other.save(), full_state().save());
  EXPECT_EQ(refusal([&] { s.reset({true}); }), Errc::invalid);
  EXPECT_EQ(refusal([&] { s.reset({true, true, true}); }), Errc::invalid);
}

TEST(State, MissingEntriesAreNamed) {
  auto s = full_state();
  for (const auto* message :
       {"the state holds no tensor named 'Q'", "the state holds no store named 'Q'",
        "the state holds no child named 'Q'"}) {
    try {
      const std::string_view what(message);
      if (what.find("tensor") != what.npos) (void)s.tensor("Q");
      if (what.find("store") != what.npos) (void)s.store("Q");
      if (what.find("child") != what.npos) (void)constant(s).child("Q");
      FAIL();
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Errc::not_found);
      EXPECT_STREQ(e.what(), message);
    }
  }
  EXPECT_TRUE(s.has("S") && s.has("tape") && s.has("layers.0"));
  EXPECT_FALSE(s.has("Q"));
}

TEST(Bytes, ReaderNeverReadsPastTheEnd) {
  std::string bytes;
  ByteWriter out(&bytes);
  out.string("abc");
  out.value(std::uint64_t{1ull << 60});
  ByteReader in(bytes);
  EXPECT_EQ(in.string(), "abc");
  EXPECT_EQ(refusal([&] { (void)in.count(16); }), Errc::corrupt);
  EXPECT_TRUE(in.done());
  EXPECT_EQ(refusal([&] { (void)in.value<char>(); }), Errc::corrupt);
  EXPECT_EQ(refusal([&] { (void)in.raw(~0ull); }), Errc::corrupt);
  ByteWriter counter(nullptr);
  counter.string("abc");
  counter.value(1.0);
  EXPECT_EQ(counter.written(), 8 + 3 + 8);
}

}  // namespace
}  // namespace mneme
