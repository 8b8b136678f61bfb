// Probe: a segment cell with memory tokens on the default model, built from public interfaces alone. Trainable
// embeddings stand before each segment's tokens; what they became at the end of one segment enters the next one, and a
// State is all that crosses the border. Gradients reach the first memory through the quantized weights.
//
//   h = decoder([M_s ; E[ids_s] ; M_s]),   M_{s+1} = h at the last m places       M_s: [B,m,D]
//
// source    Bulatov et al. 2022, arXiv:2207.06881
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "../smollm2.h"
#include "../tensor_check.h"
#include <gtest/gtest.h>

namespace mneme {
namespace {

class SegmentCell final : public Model {
 public:
  SegmentCell(const Model& decoder, std::int64_t m, Params& params)
      : decoder_(decoder),
        m_(m),
        shape_(decoder.shape()),
        memory_(params.weight("memory.weight", {m, decoder.shape().model}, Init::normal_002)) {
    shape_.context = 0;  // segments begin at position 0 each
  }

  [[nodiscard]] const ModelShape& shape() const override { return shape_; }
  [[nodiscard]] State start(std::int64_t B) const override {
    return State{{"memory", memory_->tensor.unsqueeze(0).expand({B, m_, shape_.model})}};
  }
  [[nodiscard]] at::Tensor embed(const at::Tensor& ids) const override {
    return decoder_.embed(ids);
  }

  /// One segment: logits for its own tokens; the State takes the new memory.
  [[nodiscard]] Output forward(const Batch& batch, State& state) const override {
    const auto memory = std::as_const(state).tensor("memory");
    const auto tokens = batch.ids.defined() ? embed(batch.ids) : batch.embeddings;
    const auto T = tokens.size(1);
    Batch segment;
    segment.embeddings = at::cat({memory, tokens, memory}, 1);
    segment.logits_at = LogitsAt::all;
    segment.mode = batch.mode;
    segment.compute = batch.compute;
    auto within = decoder_.start(tokens.size(0));
    auto out = decoder_.forward(segment, within);
    state.set("memory", out.hidden.narrow(1, m_ + T, m_));
    out.logits = out.logits.narrow(1, m_, T);
    return out;
  }

 private:
  const Model& decoder_;
  std::int64_t m_;
  ModelShape shape_;
  std::shared_ptr<Parameter> memory_;
};

class SegmentCellProbe : public ::testing::Test {
 protected:
  void SetUp() override {
    MNEME_NEEDS_SMOLLM2();
    const auto ids = check::smollm2()->tokenizer->encode(check::kProse);
    for (std::int64_t s = 0; s < 2; ++s) {
      auto segment = at::empty({1, 8}, at::kLong);
      for (std::int64_t t = 0; t < 8; ++t) segment[0][t] = ids[static_cast<std::size_t>(8 * s + t)];
      segments_.push_back(segment);
    }
    params_.seed(4);
    cell_ = std::make_unique<SegmentCell>(*check::smollm2(Compute::f32)->model, 2, params_);
    memory_ = params_.find("memory.weight")->tensor;
  }

  /// Cross-entropy of the second segment, which sees the first through the State alone.
  [[nodiscard]] at::Tensor loss() const {
    auto state = cell_->start(1);
    Batch batch;
    batch.mode = Mode::train;
    batch.compute = Compute::f32;
    batch.ids = segments_[0];
    (void)cell_->forward(batch, state);
    batch.ids = segments_[1];
    const auto logits = cell_->forward(batch, state).logits;
    return at::cross_entropy_loss(logits[0].narrow(0, 0, 7), segments_[1][0].narrow(0, 1, 7));
  }

  std::vector<at::Tensor> segments_;
  Params params_;
  std::unique_ptr<SegmentCell> cell_;
  at::Tensor memory_;
};

TEST_F(SegmentCellProbe, GradientsReachTheMemoryThroughQuantizedWeights) {
  EXPECT_EQ(check::smollm2()->params.find("layers.0.attn.q.weight")->stored->type(), "q4_1");
  params_.requires_grad(true);
  loss().backward();
  const auto gradient = memory_.grad().clone();
  ASSERT_TRUE(gradient.defined());
  EXPECT_TRUE(at::isfinite(gradient).all().item<bool>());
  EXPECT_GT(gradient.abs().sum(1).min().item<float>(), 0) << "every memory token";
  // Along the gradient and along a few coordinates of each token the loss changes as the gradient says.
  const c10::NoGradGuard no_gradient;
  const auto difference = [&](const at::Tensor& direction, double h) {
    const auto before = memory_.clone();
    memory_.copy_(before + h * direction);
    const auto above = loss().item<double>();
    memory_.copy_(before - h * direction);
    const auto below = loss().item<double>();
    memory_.copy_(before);
    return (above - below) / (2 * h);
  };
  const auto unit = gradient / gradient.norm();
  const auto slope = gradient.norm().item<double>();
  // The first place is the model's attention sink, where the loss bends sharply: the steps are small.
  EXPECT_NEAR(difference(unit, 1e-5), slope, 0.02 * slope);
  for (std::int64_t token = 0; token < 2; ++token) {
    const auto largest = gradient[token].abs().argmax().item<std::int64_t>();
    auto direction = at::zeros_like(memory_);
    direction[token][largest] = 1;
    const auto want = gradient[token][largest].item<double>();
    EXPECT_NEAR(difference(direction, 3e-5), want, 0.05 * std::abs(want))
        << "token " << token << ", coordinate " << largest;
  }
  EXPECT_FALSE(
      check::smollm2(Compute::f32)->params.find("layers.0.attn.q.weight")->tensor.defined())
      << "no weight was unpacked for good";
}

TEST_F(SegmentCellProbe, TheStateIsAllThatCrossesTheBorder) {
  const c10::NoGradGuard no_gradient;
  auto state = cell_->start(1);
  Batch batch;
  batch.compute = Compute::f32;
  batch.ids = segments_[0];
  (void)cell_->forward(batch, state);
  auto loaded = State::load(state.save());
  EXPECT_EQ(loaded.tensor("memory").sizes(), (at::IntArrayRef{1, 2, 576}));
  auto fresh = cell_->start(1), other = state.fork();
  batch.ids = segments_[1];
  const auto carried = cell_->forward(batch, state).logits;
  EXPECT_TRUE(check::identical(cell_->forward(batch, loaded).logits, carried));
  EXPECT_TRUE(check::identical(cell_->forward(batch, other).logits, carried));
  EXPECT_GT(check::largest_difference(cell_->forward(batch, fresh).logits, carried), 1e-2)
      << "the first segment was heard of";
}

TEST_F(SegmentCellProbe, ADetachedStateCutsTheHistory) {
  params_.requires_grad(true);
  auto state = cell_->start(1);
  Batch batch;
  batch.compute = Compute::f32;
  batch.mode = Mode::train;
  batch.ids = segments_[0];
  (void)cell_->forward(batch, state);
  EXPECT_TRUE(std::as_const(state).tensor("memory").requires_grad());
  state.detach();
  EXPECT_FALSE(std::as_const(state).tensor("memory").requires_grad());
}

}  // namespace
}  // namespace mneme
