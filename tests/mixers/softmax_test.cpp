// softmax attention as a mixer, against loops written here; what every mixer does is in contracts/mixer_contract.cpp.
#include "mneme/core/registry.h"
#include "mneme/core/taps.h"
#include "mneme/mixers/kv_store.h"
#include "mneme/mixers/mixer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "../tensor_check.h"
#include <cmath>
#include <gtest/gtest.h>

namespace mneme {
namespace {

struct Layer {
  std::int64_t D, heads, kv_heads, head;
  double theta = 10000;
  Params params;
  std::unique_ptr<Mixer> mixer;

  Layer(const std::string& spec, std::int64_t D_, std::int64_t heads_, std::int64_t kv_heads_,
        std::int64_t head_)
      : D(D_), heads(heads_), kv_heads(kv_heads_), head(head_) {
    params.seed(5);
    mixer = registry().make<Mixer>(spec, Shape{D, 0}, params);
    for (const auto& name : params.names()) params.find(name)->tensor.mul_(3);
  }

  [[nodiscard]] at::Tensor project(const char* name, const at::Tensor& x, std::int64_t of) const {
    return at::matmul(x, params.find(std::string(name) + ".weight")->tensor.to(at::kDouble).t())
        .view({x.size(0), x.size(1), of, head});
  }
  [[nodiscard]] at::Tensor turn(const at::Tensor& x,
                                std::int64_t position) const {  // pairs i, i + head/2
    auto out = x.clone();
    if (theta == 0) return out;
    for (std::int64_t i = 0; i < head / 2; ++i) {
      const auto angle = static_cast<double>(position) *
                         std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head));
      out[i] = x[i] * std::cos(angle) - x[i + head / 2] * std::sin(angle);
      out[i + head / 2] = x[i + head / 2] * std::cos(angle) + x[i] * std::sin(angle);
    }
    return out;
  }

  /// Attention of every query over the entries for which visible(b, query, entry) holds.
  template <class Visible>
  [[nodiscard]] at::Tensor brute_force(const at::Tensor& input, const at::Tensor& positions,
                                       Visible visible) const {
    const auto x = input.to(at::kDouble);
    const auto q = project("q", x, heads), k = project("k", x, kv_heads),
               v = project("v", x, kv_heads);
    auto out = at::zeros({x.size(0), x.size(1), heads, head}, at::kDouble);
    for (std::int64_t b = 0; b < x.size(0); ++b) {
      for (std::int64_t h = 0; h < heads; ++h) {
        const auto g = h / (heads / kv_heads);
        for (std::int64_t i = 0; i < x.size(1); ++i) {
          const auto query = turn(q[b][i][h], positions[b][i].item<std::int64_t>());
          double sum = 0;
          for (std::int64_t j = 0; j < x.size(1); ++j) {
            if (!visible(b, i, j)) continue;
            const auto weight =
                std::exp((query * turn(k[b][j][g], positions[b][j].item<std::int64_t>()))
                             .sum()
                             .item<double>() /
                         std::sqrt(static_cast<double>(head)));
            out[b][i][h] += weight * v[b][j][g];
            sum += weight;
          }
          if (sum > 0) out[b][i][h] /= sum;
        }
      }
    }
    return at::matmul(out.flatten(2), params.find("out.weight")->tensor.to(at::kDouble).t());
  }
};

Call call(const at::Tensor& positions) {
  Call out;
  out.positions = positions;
  out.compute = Compute::f32;
  return out;
}

class SoftmaxTest : public ::testing::Test {
 protected:
  const c10::NoGradGuard no_gradient_;
  const at::Tensor x_ = check::normal({2, 7, 24}, 1), positions_ = check::positions(2, 7, 3);
  const Layer layer_{"softmax(heads=4, kv_heads=2, head=8)", 24, 4, 2, 8};
  State state_ = layer_.mixer->start(2, {});
};

TEST_F(SoftmaxTest, EqualsTheLoop) {
  auto c = call(positions_);
  EXPECT_TRUE(check::close(
      layer_.mixer->forward(x_, state_, c),
      layer_.brute_force(x_, positions_, [](auto, auto i, auto j) { return j <= i; }), 1e-5));
}

TEST_F(SoftmaxTest, TheFastPathIsNear) {
  auto c = call(positions_);
  c.compute = Compute::automatic;
  EXPECT_TRUE(check::close(
      layer_.mixer->forward(x_, state_, c),
      layer_.brute_force(x_, positions_, [](auto, auto i, auto j) { return j <= i; }), 3e-2));
}

TEST_F(SoftmaxTest, AWorkedCase) {
  // Width 2, one head, identity projections, no positions: keys (1,0) then (0,1); the second query (0,1) weighs its own
  // key by e^(1/sqrt 2) against 1.
  Layer layer("softmax(heads=1, rope_theta=0)", 2, 1, 1, 2);
  for (const auto& name : layer.params.names()) layer.params.find(name)->tensor.copy_(at::eye(2));
  auto state = layer.mixer->start(1, {});
  auto c = call(check::positions(1, 2));
  const auto y = layer.mixer->forward(at::eye(2).unsqueeze(0), state, c);
  const double e = std::exp(1 / std::sqrt(2.0));
  EXPECT_NEAR(y[0][0][0].item<double>(), 1, 1e-6);
  EXPECT_NEAR(y[0][1][0].item<double>(), 1 / (1 + e), 1e-6);
  EXPECT_NEAR(y[0][1][1].item<double>(), e / (1 + e), 1e-6);
}

TEST_F(SoftmaxTest, TheWindowCountsPositions) {
  for (const auto* spec :
       {"softmax(heads=4, kv_heads=2, head=8, window=3)", "softmax(heads=4, kv_heads=2, head=8)"}) {
    const Layer layer(spec, 24, 4, 2, 8);
    auto positions = positions_.clone();
    positions.narrow(1, 4, 3).add_(10);  // a gap: what lies before it is out of the window
    auto c = call(positions);
    if (!std::string(spec).ends_with("window=3)")) c.pattern.window = 3;
    auto state = layer.mixer->start(2, {});
    const auto want = layer.brute_force(x_, positions, [&](auto b, auto i, auto j) {
      return j <= i && positions[b][i].template item<std::int64_t>() -
                               positions[b][j].template item<std::int64_t>() <
                           3;
    });
    EXPECT_TRUE(check::close(layer.mixer->forward(x_, state, c), want, 1e-5)) << spec;
  }
}

TEST_F(SoftmaxTest, TheNarrowerWindowHolds) {
  const Layer wide("softmax(heads=4, kv_heads=2, head=8, window=100)", 24, 4, 2, 8);
  auto c = call(positions_);
  c.pattern.window = 2;
  auto state = wide.mixer->start(2, {});
  EXPECT_TRUE(check::close(
      wide.mixer->forward(x_, state, c),
      wide.brute_force(x_, positions_, [](auto, auto i, auto j) { return j <= i && i - j < 2; }),
      1e-5));
}

TEST_F(SoftmaxTest, SegmentsDoNotSeeEachOther) {
  const auto segments =
      at::tensor({0, 0, 1, 1, 0, 1, 1, 5, 5, 5, 5, 6, 6, 5}, at::kLong).view({2, 7});
  const auto same = [&](auto b, auto i, auto j) {
    return j <= i && at::equal(segments[b][i], segments[b][j]);
  };
  const auto want = layer_.brute_force(x_, positions_, same);
  auto c = call(positions_);
  c.pattern.by_segment = true;
  c.segments = segments;
  EXPECT_TRUE(check::close(layer_.mixer->forward(x_, state_, c), want, 1e-5));
  // In two calls: the store remembers the segments.
  auto state = layer_.mixer->start(2, {});
  std::vector<at::Tensor> parts;
  for (const auto& [begin, n] : {std::pair{0, 3}, {3, 4}}) {
    auto piece = call(positions_.narrow(1, begin, n));
    piece.pattern.by_segment = true;
    piece.segments = segments.narrow(1, begin, n);
    parts.push_back(layer_.mixer->forward(x_.narrow(1, begin, n), state, piece));
    state = State::load(state.save());
  }
  EXPECT_TRUE(check::close(at::cat(parts, 1), want, 1e-5));
  // And so do entries that carry gradients.
  const c10::AutoGradMode on(true);
  auto live = layer_.mixer->start(2, {});
  const auto tracked = x_.clone().set_requires_grad(true);
  EXPECT_TRUE(check::close(layer_.mixer->forward(tracked, live, c).detach(), want, 1e-5));
  // Bidirectional within segments.
  auto both = call(positions_);
  both.pattern = {false, 0, true};
  both.segments = segments;
  State none;
  const c10::NoGradGuard off;
  EXPECT_TRUE(check::close(layer_.mixer->forward(x_, none, both),
                           layer_.brute_force(x_, positions_,
                                              [&](auto b, auto i, auto j) {
                                                return at::equal(segments[b][i], segments[b][j]);
                                              }),
                           1e-5));
}

TEST_F(SoftmaxTest, BothDirections) {
  for (const auto* spec : {"softmax(heads=4, kv_heads=2, head=8)", "softmax(heads=3, head=8)"}) {
    const bool grouped = std::string(spec).find("kv_heads") != std::string::npos;
    const Layer layer(spec, 24, grouped ? 4 : 3, grouped ? 2 : 3, 8);
    auto c = call(positions_);
    c.pattern.causal = false;
    State none;
    EXPECT_TRUE(check::close(
        layer.mixer->forward(x_, none, c),
        layer.brute_force(x_, positions_, [](auto, auto, auto) { return true; }), 1e-5));
    EXPECT_TRUE(none.empty()) << "keeps nothing";
    c.lengths = {7, 4};
    const auto y = layer.mixer->forward(x_, none, c),
               want = layer.brute_force(x_, positions_,
                                        [](auto b, auto, auto j) { return b == 0 || j < 4; });
    EXPECT_TRUE(check::close(y[0], want[0], 1e-5));
    EXPECT_TRUE(check::close(y[1].narrow(0, 0, 4), want[1].narrow(0, 0, 4), 1e-5));
    c.lengths = {};
    c.pattern.window = 2;
    EXPECT_TRUE(check::close(
        layer.mixer->forward(x_, none, c),
        layer.brute_force(x_, positions_, [](auto, auto i, auto j) { return i - j < 2; }), 1e-5));
  }
}

TEST_F(SoftmaxTest, ExtraKeysAreSeenByAll) {
  // Without positions an extra entry is as good as a token at the front that every query sees.
  Layer layer("softmax(heads=4, kv_heads=2, head=8, rope_theta=0)", 24, 4, 2, 8);
  layer.theta = 0;
  const auto front = check::normal({2, 3, 24}, 8), all = at::cat({front, x_}, 1);
  auto c = call(positions_);
  c.extra_keys = layer.project("k", front.to(at::kDouble), 2).transpose(1, 2).to(at::kFloat);
  c.extra_values = layer.project("v", front.to(at::kDouble), 2).transpose(1, 2).to(at::kFloat);
  auto state = layer.mixer->start(2, {});
  const auto want =
      layer.brute_force(all, check::positions(2, 10), [](auto, auto i, auto j) { return j <= i; })
          .narrow(1, 3, 7);
  EXPECT_TRUE(check::close(layer.mixer->forward(x_, state, c), want, 1e-5));
  const auto& store = dynamic_cast<const KvStore&>(std::as_const(state).store("kv"));
  EXPECT_EQ(store.seen(0), 7) << "they are not taken into the State";
  c.lengths = {7, 4};  // shorter rows take another way through the kernel's sums
  auto ragged = layer.mixer->start(2, {});
  const auto y = layer.mixer->forward(x_, ragged, c);
  EXPECT_TRUE(check::close(y[0], want[0], 1e-5));
  EXPECT_TRUE(check::close(y[1].narrow(0, 0, 4), want[1].narrow(0, 0, 4), 1e-5));
}

TEST_F(SoftmaxTest, ReadOnlySeesStateAndItself) {
  auto first = call(positions_.narrow(1, 0, 4)), second = call(positions_.narrow(1, 4, 3));
  (void)layer_.mixer->forward(x_.narrow(1, 0, 4), state_, first);
  const auto bytes = state_.save();
  second.mode = Mode::read_only;
  const auto want = layer_.brute_force(x_, positions_, [](auto, auto i, auto j) { return j <= i; })
                        .narrow(1, 4, 3);
  EXPECT_TRUE(check::close(layer_.mixer->forward(x_.narrow(1, 4, 3), state_, second), want, 1e-5));
  EXPECT_EQ(state_.save(), bytes);
  State none;  // nothing to read: only the call's own tokens
  auto alone = call(positions_);
  alone.mode = Mode::read_only;
  EXPECT_TRUE(check::close(
      layer_.mixer->forward(x_, none, alone),
      layer_.brute_force(x_, positions_, [](auto, auto i, auto j) { return j <= i; }), 1e-5));
}

TEST_F(SoftmaxTest, TapsSeeQueriesKeysValuesAndOutput) {
  auto c = call(positions_);
  c.at = "layers.3";
  std::map<std::string, std::vector<std::int64_t>> seen;
  Taps taps;
  taps.add("*", [&](std::string_view name, const at::Tensor& value) {
    seen[std::string(name)] = value.sizes().vec();
    return value;
  });
  c.taps = &taps;
  EXPECT_TRUE(check::close(
      layer_.mixer->forward(x_, state_, c),
      layer_.brute_force(x_, positions_, [](auto, auto i, auto j) { return j <= i; }), 1e-5));
  const std::map<std::string, std::vector<std::int64_t>> want{{"layers.3.attn.q", {2, 4, 7, 8}},
                                                              {"layers.3.attn.k", {2, 2, 7, 8}},
                                                              {"layers.3.attn.v", {2, 2, 7, 8}},
                                                              {"layers.3.attn.heads", {2, 4, 7, 8}},
                                                              {"layers.3.attn.out", {2, 7, 24}}};
  EXPECT_EQ(seen, want);
}

TEST_F(SoftmaxTest, RefusesWhatDoesNotFit) {
  Params params;
  check::expect_error(Errc::usage, "kv_heads=3 does not divide heads=4", [&] {
    (void)registry().make<Mixer>("softmax(heads=4, kv_heads=3)", Shape{24, 0}, params);
  });
  check::expect_error(Errc::usage, "does not divide the model's width", [&] {
    (void)registry().make<Mixer>("softmax(heads=5)", Shape{24, 0}, params);
  });
  check::expect_error(Errc::usage, "at least 1", [&] {
    (void)registry().make<Mixer>("softmax(heads=0)", Shape{24, 0}, params);
  });
  check::expect_error(Errc::invalid, "even", [&] {
    (void)registry().make<Mixer>("softmax(heads=8)", Shape{24, 0}, params);
  });
  auto c = call(check::positions(3, 7));
  check::expect_error(Errc::invalid, "holds 2 sequences", [&] {
    (void)layer_.mixer->forward(check::normal({3, 7, 24}, 1), state_, c);
  });
}

}  // namespace
}  // namespace mneme
