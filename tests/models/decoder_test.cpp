// The decoder on small random weights: what State promises, and every way of calling it.
#include "mneme/core/taps.h"
#include "mneme/kv/plan.h"
#include "mneme/layers/linear.h"
#include "mneme/layers/norm.h"
#include "mneme/mixers/mixer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include "../tiny_models.h"
#include <gtest/gtest.h>

namespace mneme {
namespace {

class DecoderTest : public ::testing::TestWithParam<std::string> {
 protected:
  [[nodiscard]] at::Tensor logits(const at::Tensor& ids, State& state,
                                  const std::vector<std::int64_t>& lengths = {}) const {
    return tiny_.logits(ids, state, lengths);
  }
  [[nodiscard]] State start(std::int64_t B = 1) const { return tiny_.model->start(B); }
  [[nodiscard]] at::Tensor logits_in_chunks(const at::Tensor& ids, State& state,
                                            const std::vector<std::int64_t>& sizes) const {
    std::vector<at::Tensor> out;
    std::int64_t t = 0;
    for (std::size_t i = 0; t < ids.size(1); ++i) {
      const auto n = std::min(sizes[i % sizes.size()], ids.size(1) - t);
      out.push_back(logits(ids.narrow(1, t, n), state));
      t += n;
    }
    return at::cat(out, 1);
  }
  const c10::InferenceMode inference_;
  const check::TinyModel tiny_{GetParam()};
  const at::Tensor ids_ = check::random_ids(2, 150, 50, 3);
};

TEST_P(DecoderTest, AnyChunkingGivesTheSameLogits) {
  auto state = start(2);
  const auto whole = logits(ids_, state);
  for (const auto& sizes :
       {std::vector<std::int64_t>{1}, std::vector<std::int64_t>{7}, std::vector<std::int64_t>{64},
        std::vector<std::int64_t>{1, 100, 3}, std::vector<std::int64_t>{149, 1}}) {
    auto other = start(2);
    EXPECT_LE(check::largest_difference(logits_in_chunks(ids_, other, sizes), whole), 1e-4);
    EXPECT_EQ(other.positions, state.positions);
  }
}

TEST_P(DecoderTest, LogitsAreWhereTheyAreAskedFor) {
  auto a = start(2), b = start(2), c = start(2), d = start(2);
  const auto all = logits(ids_, a, {150, 20});
  Batch batch;
  batch.ids = ids_;
  batch.lengths = {150, 20};
  batch.compute = Compute::f32;
  const auto last = tiny_.model->forward(batch, b);
  ASSERT_EQ(last.logits.sizes(), (at::IntArrayRef{2, 50}));
  EXPECT_TRUE(check::close(last.logits[0], all[0][149], 1e-5));
  EXPECT_TRUE(check::close(last.logits[1], all[1][19], 1e-5));
  EXPECT_EQ(last.hidden.sizes(), (at::IntArrayRef{2, 150, 32}));
  batch.logits_at = LogitsAt::none;
  EXPECT_FALSE(tiny_.model->forward(batch, c).logits.defined());
  EXPECT_EQ(c.positions, (std::vector<std::int64_t>{150, 20}));
  batch.ids = at::Tensor();
  batch.embeddings = tiny_.model->embed(ids_);
  batch.logits_at = LogitsAt::all;
  EXPECT_TRUE(check::identical(tiny_.model->forward(batch, d).logits[0], all[0]))
      << "embeddings in place of ids";
}

TEST_P(DecoderTest, SavedAndLoadedItGoesOnTheSame) {
  auto state = start(2);
  (void)logits(ids_.narrow(1, 0, 100), state);
  auto loaded = State::load(state.save());
  EXPECT_EQ(loaded.positions, state.positions);
  EXPECT_TRUE(check::identical(logits(ids_.narrow(1, 100, 50), loaded),
                               logits(ids_.narrow(1, 100, 50), state)));
}

TEST_P(DecoderTest, ForksDiverge) {
  auto parent = start(2);
  (void)logits(ids_.narrow(1, 0, 70), parent);
  auto child = parent.fork();
  const auto others = check::random_ids(2, 30, 50, 9);
  const auto child_logits = logits(others, child),
             parent_logits = logits(ids_.narrow(1, 70, 30), parent);
  auto a = start(2), b = start(2);
  (void)logits(ids_.narrow(1, 0, 70), a);
  (void)logits(ids_.narrow(1, 0, 70), b);
  EXPECT_TRUE(check::identical(child_logits, logits(others, a)));
  EXPECT_TRUE(check::identical(parent_logits, logits(ids_.narrow(1, 70, 30), b)));
  EXPECT_GT(check::largest_difference(child_logits, parent_logits), 1e-2);
}

TEST_P(DecoderTest, RewoundItGoesOnFromThere) {
  for (const std::int64_t n : {1, 20, 64, 100}) {
    auto state = start(2), shorter = start(2);
    (void)logits(ids_, state);
    try {
      state.rewind(n);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::unsupported);
      return;
    }
    (void)logits(ids_.narrow(1, 0, 150 - n), shorter);
    EXPECT_EQ(state.positions, shorter.positions);
    const auto next = check::random_ids(2, 5, 50, 9);
    EXPECT_LE(check::largest_difference(logits(next, state), logits(next, shorter)), 1e-4);
  }
}

TEST_P(DecoderTest, RowsOfDifferentLengthsEqualEachAlone) {
  const std::vector<std::int64_t> lengths{3, 70, 129, 1};
  std::vector<State> alone;
  std::vector<const State*> pointers;
  const auto ids = check::random_ids(4, 129, 50, 5), next = check::random_ids(4, 40, 50, 6);
  for (std::int64_t b = 0; b < 4; ++b) {
    alone.push_back(start());
    (void)logits(ids.narrow(0, b, 1).narrow(1, 0, lengths[static_cast<std::size_t>(b)]),
                 alone.back());
  }
  for (const auto& state : alone) pointers.push_back(&state);
  auto joined = State::concat(pointers), padded = start(4);
  (void)logits(ids, padded, lengths);
  EXPECT_EQ(joined.positions, lengths);
  EXPECT_EQ(padded.positions, lengths);
  const std::vector<std::int64_t> more{40, 1, 7, 0};
  const auto a = logits(next, joined, more), b = logits(next, padded, more);
  for (std::int64_t row = 0; row < 3; ++row) {
    const auto n = more[static_cast<std::size_t>(row)];
    const auto want =
        logits(next.narrow(0, row, 1).narrow(1, 0, n), alone[static_cast<std::size_t>(row)]);
    EXPECT_LE(check::largest_difference(a.narrow(0, row, 1).narrow(1, 0, n), want), 1e-4)
        << "joined, row " << row;
    EXPECT_LE(check::largest_difference(b.narrow(0, row, 1).narrow(1, 0, n), want), 1e-4)
        << "padded, row " << row;
  }
  EXPECT_EQ(joined.positions, (std::vector<std::int64_t>{43, 71, 136, 1}));
}

TEST_P(DecoderTest, LayersCanBeRunApart) {
  auto whole_state = start(2), state = start(2);
  const auto whole = logits(ids_.narrow(1, 0, 30), whole_state);
  Batch lower;
  lower.ids = ids_.narrow(1, 0, 30);
  lower.to_layer = 1;
  lower.compute = Compute::f32;
  lower.logits_at = LogitsAt::all;
  const auto hidden = tiny_.model->forward(lower, state);
  EXPECT_FALSE(hidden.logits.defined());
  EXPECT_EQ(state.positions, (std::vector<std::int64_t>{0, 0})) << "only the last layer moves on";
  Batch upper;
  upper.embeddings = hidden.hidden;
  upper.from_layer = 1;
  upper.compute = Compute::f32;
  upper.logits_at = LogitsAt::all;
  EXPECT_TRUE(check::identical(tiny_.model->forward(upper, state).logits, whole));
  EXPECT_EQ(state.positions, whole_state.positions);
}

TEST_P(DecoderTest, ReadOnlyLeavesTheState) {
  auto state = start(2);
  (void)logits(ids_.narrow(1, 0, 30), state);
  const auto bytes = state.save();
  Batch batch;
  batch.ids = ids_.narrow(1, 30, 5);
  batch.mode = Mode::read_only;
  batch.compute = Compute::f32;
  batch.logits_at = LogitsAt::all;
  const auto read = tiny_.model->forward(batch, state).logits;
  EXPECT_EQ(state.save(), bytes) << "its positions too";
  EXPECT_LE(check::largest_difference(read, logits(ids_.narrow(1, 30, 5), state)), 1e-4);
}

TEST_P(DecoderTest, TheDifferentiablePathGivesTheSameLogits) {
  auto state = start(2);
  const auto plain = logits(ids_.narrow(1, 0, 70), state);
  const c10::InferenceMode off(false);
  const c10::AutoGradMode on(true);
  const check::TinyModel trained(GetParam());
  trained.params.requires_grad(true);
  auto live = trained.model->start(2);
  const auto head = trained.logits(ids_.narrow(1, 0, 40).clone(), live),
             tail = trained.logits(ids_.narrow(1, 40, 30).clone(), live);
  EXPECT_LE(check::largest_difference(at::cat({head, tail}, 1).detach(), plain), 1e-4);
  tail.sum().backward();
  for (const auto& name : trained.params.names()) {
    const auto& x = trained.params.find(name)->tensor;
    ASSERT_TRUE(x.grad().defined()) << name;
    EXPECT_GT(x.grad().abs().max().item<float>(), 0) << name;
  }
  live.detach();  // back in pages, and on in inference
  const c10::NoGradGuard off_again;
  trained.params.requires_grad(false);
  auto reference = start(2);
  (void)logits(ids_.narrow(1, 0, 70), reference);
  EXPECT_LE(check::largest_difference(trained.logits(ids_.narrow(1, 70, 9).clone(), live),
                                      logits(ids_.narrow(1, 70, 9), reference)),
            1e-4);
}

TEST_P(DecoderTest, RefusesImpossibleBatches) {
  auto state = start(2);
  const auto refused = [&](Errc code, const char* part, auto change) {
    Batch batch;
    batch.ids = ids_.narrow(1, 0, 4);
    change(batch);
    const auto bytes = state.save();
    check::expect_error(code, part, [&] { (void)tiny_.model->forward(batch, state); });
    EXPECT_EQ(state.save(), bytes) << part;
  };
  refused(Errc::invalid, "wants ids or embeddings", [](Batch& b) { b.ids = at::Tensor(); });
  refused(Errc::invalid, "not both", [](Batch& b) { b.embeddings = at::zeros({2, 4, 32}); });
  refused(Errc::invalid, "not 1 dimensions", [](Batch& b) { b.ids = b.ids[0]; });
  refused(Errc::invalid, "no tokens", [](Batch& b) { b.ids = b.ids.narrow(1, 0, 0); });
  refused(Errc::invalid, "the batch 1", [](Batch& b) { b.ids = b.ids.narrow(0, 0, 1); });
  refused(Errc::invalid, "1 lengths", [](Batch& b) { b.lengths = {4}; });
  refused(Errc::invalid, "5 tokens in a batch of 4", [](Batch& b) { b.lengths = {4, 5}; });
  refused(Errc::invalid, "positions", [](Batch& b) { b.positions = check::positions(2, 3); });
  refused(Errc::invalid, "segments", [](Batch& b) { b.segments = check::positions(2, 3); });
  refused(Errc::invalid, "token id 50", [](Batch& b) { b.ids = at::full({2, 4}, 50, at::kLong); });
  refused(Errc::invalid, "width 31", [](Batch& b) {
    b.ids = at::Tensor();
    b.embeddings = at::zeros({2, 4, 31});
  });
  refused(Errc::invalid, "layers 0 to 9", [](Batch& b) { b.to_layer = 9; });
  refused(Errc::invalid, "layers 2 to 1", [](Batch& b) {
    b.from_layer = 2;
    b.to_layer = 1;
  });
}

const std::vector<std::string> kSpecs{
    check::kTinyDecoder,
    "decoder(vocabulary=50, model=32, layers=3, context=0, tied=false, mixer=softmax(heads=4, "
    "rope_pairs=adjacent, window=20), feed_forward=mlp(hidden=40))",
    "decoder(vocabulary=50, model=32, layers=2, context=0, mixer=decaying_sum(width=24), "
    "feed_forward=glu(hidden=48))"};
std::string kind_name(const ::testing::TestParamInfo<std::string>& info) {
  static const char* const kNames[] = {"grouped", "windowed", "recurrent"};
  return kNames[info.index];
}
INSTANTIATE_TEST_SUITE_P(Mixers, DecoderTest, ::testing::ValuesIn(kSpecs), kind_name);

/// The block written out: what the decoder is.
TEST(Decoder, IsItsEquations) {
  const c10::NoGradGuard no_gradient;
  check::TinyModel tiny(
      "decoder(vocabulary=50, model=32, layers=1, context=0, norm_eps=1e-3, tied=false, "
      "mixer=softmax(heads=4), feed_forward=glu(hidden=48))");
  const auto ids = check::random_ids(1, 9, 50, 1);
  auto state = tiny.model->start(1);
  const auto got = tiny.logits(ids, state);
  const auto w = [&](const std::string& name) { return tiny.params.find(name)->tensor; };
  const auto norm = [&](const at::Tensor& x, const std::string& name) {
    return x / at::sqrt(x.square().mean(-1, true) + 1e-3) * w(name);
  };
  auto x = w("embed.weight").index_select(0, ids[0]).unsqueeze(0);
  auto mixer_params = tiny.params.scope("layers.0").scope("attn");
  const auto mixer = registry().make<Mixer>("softmax(heads=4)", Shape{32, 0}, mixer_params);
  Call call;
  call.positions = check::positions(1, 9);
  call.compute = Compute::f32;
  auto own = mixer->start(1, {});
  x = x + mixer->forward(norm(x, "layers.0.norm1.weight"), own, call);
  const auto z = norm(x, "layers.0.norm2.weight");
  x = x + at::matmul(at::silu(at::matmul(z, w("layers.0.mlp.gate.weight").t())) *
                         at::matmul(z, w("layers.0.mlp.up.weight").t()),
                     w("layers.0.mlp.down.weight").t());
  EXPECT_TRUE(check::close(got, at::matmul(norm(x, "norm.weight"), w("head.weight").t()), 1e-5));
}

TEST(Decoder, TheContextIsALimit) {
  const check::TinyModel tiny(
      "decoder(vocabulary=50, model=16, layers=1, context=10, mixer=softmax(heads=2), "
      "feed_forward=glu(hidden=8))");
  const c10::NoGradGuard no_gradient;
  auto state = tiny.model->start(1);
  const auto ids = check::random_ids(1, 11, 50, 1);
  check::expect_error(Errc::full, "position 10 is past the model's context of 10",
                      [&] { (void)tiny.logits(ids, state); });
  (void)tiny.logits(ids.narrow(1, 0, 10), state);
  check::expect_error(Errc::full, "context of 10",
                      [&] { (void)tiny.logits(ids.narrow(1, 10, 1), state); });
  Batch batch;  // positions given by hand may start over
  batch.ids = ids.narrow(1, 0, 1);
  batch.positions = at::zeros({1, 1}, at::kLong);
  (void)tiny.model->forward(batch, state);
  EXPECT_EQ(state.positions[0], 1);
}

TEST(Decoder, BothDirectionsSeeAll) {
  const check::TinyModel tiny(check::kTinyDecoder);
  const c10::NoGradGuard no_gradient;
  auto ids = check::random_ids(1, 12, 50, 1);
  const auto first = [&](bool causal) {
    auto state = tiny.model->start(1);
    Batch batch;
    batch.ids = ids;
    batch.pattern.causal = causal;
    batch.compute = Compute::f32;
    batch.logits_at = LogitsAt::all;
    return tiny.model->forward(batch, state).logits[0][0];
  };
  const auto causal = first(true), both = first(false);
  ids[0][11] = (ids[0][11] + 1) % 50;
  EXPECT_TRUE(check::identical(first(true), causal));
  EXPECT_GT(check::largest_difference(first(false), both), 1e-4);
}

TEST(Decoder, AReplacedFeedForwardIsUsed) {
  struct Nothing final : FeedForward {
    at::Tensor forward(const at::Tensor& x, Call&) const override { return at::zeros_like(x); }
  };
  check::TinyModel tiny(check::kTinyDecoder), silenced(check::kTinyDecoder);
  const c10::NoGradGuard no_gradient;
  silenced.params.find("layers.1.mlp.down.weight")->tensor.zero_();
  const auto ids = check::random_ids(1, 12, 50, 1);
  auto a = tiny.model->start(1), b = tiny.model->start(1);
  tiny.model->set_feed_forward(1, std::make_shared<Nothing>());
  EXPECT_TRUE(check::identical(tiny.logits(ids, a), silenced.logits(ids, b)));
  check::expect_error(Errc::invalid, "layer 2",
                      [&] { tiny.model->set_feed_forward(2, std::make_shared<Nothing>()); });
}

TEST(Decoder, SaysWhatItsSpecLacks) {
  Params params;
  check::expect_error(Errc::usage, "did you mean 'softmax'",
                      [&] { (void)registry().make<Model>("decoder(mixer=softmx)", params); });
  check::expect_error(Errc::usage, "one stage each", [&] {
    (void)registry().make<Model>("decoder(mixer={softmax | softmax})", params);
  });
  Params wrong;
  (void)wrong.weight("embed.weight", {7, 64});
  check::expect_error(Errc::mismatch, "embed.weight",
                      [&] { (void)registry().make<Model>("decoder", wrong); });
}

}  // namespace
}  // namespace mneme
