#include "mneme/mixers/attention/partial.h"

#include <ATen/ATen.h>

#include "../contracts/gradcheck.h"
#include <cmath>
#include <gtest/gtest.h>
#include <limits>

namespace mneme {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

struct Attention {
  std::int64_t B = 2, G = 3, H = 2, T = 4, N = 11, K = 5, V = 6;
  at::Tensor q = check::normal({B, G* H, T, K}, 1, at::kDouble),
             q_positions = check::positions(B, T, 6);
  at::Tensor q_segments = at::tensor({0, 1, 1, 2, 0, 0, 1, 1}, at::kLong).view({2, 4});
  Entries entries{check::normal({B, H, N, K}, 2, at::kDouble),
                  check::normal({B, H, N, V}, 3, at::kDouble),
                  check::positions(B, N).unsqueeze(1),
                  {},
                  {},
                  {}};
  Pattern pattern;

  [[nodiscard]] Partial run() const {
    return attend_plain(q, q_positions, q_segments, entries, pattern, 0.4);
  }

  /// One query and one entry after another.
  [[nodiscard]] Partial brute_force() const {
    Partial out{at::zeros({B, G * H, T, V}, at::kDouble),
                at::full({B, G * H, T}, kNone, at::kDouble)};
    const auto at_entry = [&](const at::Tensor& x, std::int64_t b, std::int64_t h, std::int64_t n) {
      return x.expand({B, H, N})[b][h][n];
    };
    for (std::int64_t b = 0; b < B; ++b) {
      for (std::int64_t head = 0; head < G * H; ++head) {
        const auto h = head / G;
        for (std::int64_t t = 0; t < T; ++t) {
          std::vector<double> logits;
          std::vector<std::int64_t> seen;
          const auto at_query = q_positions[b][t].item<std::int64_t>();
          for (std::int64_t n = 0; n < N; ++n) {
            const auto p = at_entry(entries.positions, b, h, n).item<std::int64_t>();
            if (pattern.causal && p > at_query) continue;
            if (pattern.window > 0 && at_query - p >= pattern.window) continue;
            if (pattern.by_segment && at_entry(entries.segments, b, h, n).item<std::int64_t>() !=
                                          q_segments[b][t].item<std::int64_t>())
              continue;
            if (entries.valid.defined() && !at_entry(entries.valid, b, h, n).item<bool>()) continue;
            auto logit = 0.4 * (q[b][head][t] * entries.keys[b][h][n]).sum().item<double>();
            if (entries.log_mass.defined())
              logit += at_entry(entries.log_mass, b, h, n).item<double>();
            logits.push_back(logit);
            seen.push_back(n);
          }
          double sum = 0;
          for (auto logit : logits) sum += std::exp(logit);
          if (seen.empty()) continue;
          out.lse[b][head][t] = std::log(sum);
          for (std::size_t i = 0; i < seen.size(); ++i)
            out.out[b][head][t] += std::exp(logits[i]) / sum * entries.values[b][h][seen[i]];
        }
      }
    }
    return out;
  }

  void expect_equal() const {
    const auto got = run(), want = brute_force();
    EXPECT_TRUE(check::close(got.out, want.out, 1e-10));
    const auto nothing = at::isinf(want.lse);
    EXPECT_TRUE(check::identical(at::isinf(got.lse), nothing));
    EXPECT_TRUE(
        check::close(got.lse.masked_fill(nothing, 0), want.lse.masked_fill(nothing, 0), 1e-10));
  }
};

TEST(AttendPlain, EqualsTheLoop) {
  Attention a;
  a.expect_equal();
  a.pattern.causal = false;
  a.expect_equal();
}

TEST(AttendPlain, Window) {
  for (const std::int64_t window : {1, 2, 5, 100}) {
    Attention a;
    a.pattern.window = window;
    a.expect_equal();
    a.pattern.causal = false;
    a.expect_equal();
  }
  // A window of one sees the token's own position and nothing else.
  Attention a;
  a.pattern.window = 1;
  EXPECT_TRUE(check::close(a.run().out[0][0][2], a.entries.values[0][0][8], 1e-12));
}

TEST(AttendPlain, Segments) {
  Attention a;
  a.pattern.by_segment = true;
  a.entries.segments = (at::arange(22, at::kLong) % 3).view({2, 1, 11});
  a.expect_equal();
  a.entries.segments = (at::arange(44, at::kLong) % 3).view({2, 2, 11});  // of every head
  a.expect_equal();
  a.entries.segments = at::Tensor();
  check::expect_error(Errc::invalid, "segment", [&] { (void)a.run(); });
}

TEST(AttendPlain, PaddingMassAndHeadsOfTheirOwn) {
  Attention a;
  a.entries.valid = (at::arange(22) % 4 != 1).view({2, 1, 11});
  a.expect_equal();
  a.entries.log_mass = check::normal({2, 2, 11}, 5, at::kDouble);
  a.entries.positions = (at::arange(44, at::kLong) * 7 % 13).view({2, 2, 11});
  a.entries.valid = (at::arange(44) % 5 != 2).view({2, 2, 11});
  a.expect_equal();
}

TEST(AttendPlain, SeesNothingWhereNothingIsVisible) {
  Attention a;
  a.q_positions = check::positions(2, 4, -2);  // the first two stand before every entry
  a.expect_equal();
  const auto partial = a.run();
  EXPECT_EQ(partial.out.narrow(2, 0, 2).abs().max().item<double>(), 0);
  EXPECT_TRUE(at::isinf(partial.lse.narrow(2, 0, 2)).all().item<bool>());
  a.N = 0;
  a.entries = {at::empty({2, 2, 0, 5}, at::kDouble),
               at::empty({2, 2, 0, 6}, at::kDouble),
               at::empty({2, 1, 0}, at::kLong),
               {},
               {},
               {}};
  a.expect_equal();
}

TEST(AttendPlain, Gradients) {
  Attention a;
  a.pattern.window = 4;
  a.q_positions = check::positions(2, 4, 2);
  EXPECT_TRUE(
      check::gradients_match([&] { return a.run().out; },
                             {{"q", a.q}, {"keys", a.entries.keys}, {"values", a.entries.values}}));
  a.q_positions =
      check::positions(2, 4, -2);  // rows that see nothing must not turn gradients into NaN
  EXPECT_TRUE(
      check::gradients_match([&] { return a.run().out; },
                             {{"q", a.q}, {"keys", a.entries.keys}, {"values", a.entries.values}}));
}

Entries part(const Entries& all, std::int64_t begin, std::int64_t n) {
  const auto cut = [&](const at::Tensor& x, std::int64_t dim) {
    return x.defined() ? x.narrow(dim, begin, n) : x;
  };
  return {cut(all.keys, 2),  cut(all.values, 2),   cut(all.positions, 2),
          cut(all.valid, 2), cut(all.log_mass, 2), cut(all.segments, 2)};
}

TEST(Merge, AnyPartitionEqualsOneSegment) {
  Attention a;
  a.pattern.window = 7;
  const auto whole = a.run();
  for (const std::vector<std::int64_t>& cuts :
       {std::vector<std::int64_t>{5}, std::vector<std::int64_t>{1, 2},
        std::vector<std::int64_t>{0, 3, 3, 10, 11},
        std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}) {
    std::vector<Partial> parts;
    std::int64_t begin = 0;
    for (std::size_t i = 0; i <= cuts.size(); ++i) {
      const auto end = i < cuts.size() ? cuts[i] : a.N;
      parts.push_back(attend_plain(a.q, a.q_positions, a.q_segments,
                                   part(a.entries, begin, end - begin), a.pattern, 0.4));
      begin = end;
    }
    const auto merged = merge(parts);
    EXPECT_TRUE(check::close(merged.out, whole.out, 1e-12));
    EXPECT_TRUE(check::close(merged.lse, whole.lse, 1e-12));
    std::reverse(parts.begin(), parts.end());
    EXPECT_TRUE(check::close(merge(parts).out, whole.out, 1e-12)) << "in any order";
  }
}

TEST(Merge, AnEmptyMemoryIsNone) {
  Attention a;
  const auto whole = a.run();
  Attention empty = a;
  empty.q_positions = check::positions(2, 4, -10);
  const auto nothing = empty.run();
  const auto merged = merge({nothing, whole, nothing});
  EXPECT_TRUE(check::close(merged.out, whole.out, 1e-12));
  EXPECT_TRUE(check::close(merged.lse, whole.lse, 1e-12));
  const auto none = merge({nothing, nothing});
  EXPECT_EQ(none.out.abs().max().item<double>(), 0) << "nothing and nothing is nothing, not NaN";
  EXPECT_TRUE(at::isinf(none.lse).all().item<bool>());
}

TEST(Merge, LargeLogitsDoNotOverflow) {
  const auto out = [](double x) { return at::full({1, 1, 1, 1}, x, at::kDouble); };
  const auto lse = [](double x) { return at::full({1, 1, 1}, x, at::kDouble); };
  const auto merged = merge({{out(1), lse(5000)}, {out(2), lse(5000)}, {out(7), lse(-5000)}});
  EXPECT_NEAR(merged.out.item<double>(), 1.5, 1e-12);
  EXPECT_NEAR(merged.lse.item<double>(), 5000 + std::log(2.0), 1e-9);
}

}  // namespace
}  // namespace mneme
