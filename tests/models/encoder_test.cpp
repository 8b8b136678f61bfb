// The BERT-type encoder on small random weights; parity with transformers is in parity/sentence_encoder_parity.py.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "../contracts/gradcheck.h"
#include "../tiny_models.h"
#include <gtest/gtest.h>

namespace mneme {
namespace {

constexpr const char* kTiny =
    "encoder(vocabulary=50, model=32, layers=2, context=40, mixer=softmax(heads=4, rope_theta=0, "
    "bias=true), feed_forward=mlp(hidden=48))";

class EncoderTest : public ::testing::Test {
 protected:
  [[nodiscard]] at::Tensor hidden(const at::Tensor& ids,
                                  const std::vector<std::int64_t>& lengths = {},
                                  Compute compute = Compute::f32) const {
    Batch batch;
    batch.ids = ids;
    batch.lengths = lengths;
    batch.compute = compute;
    State none;
    return tiny_.model->forward(batch, none).hidden;
  }
  const c10::NoGradGuard no_gradient_;
  const check::TinyModel tiny_{kTiny};
};

TEST_F(EncoderTest, ARaggedBatchEqualsEachTextAlone) {
  auto ids = check::random_ids(4, 40, 50, 1);
  const std::vector<std::int64_t> lengths{40, 1, 17, 33};
  const auto together = hidden(ids, lengths);
  for (std::int64_t b = 0; b < 4; ++b) {
    const auto n = lengths[static_cast<std::size_t>(b)];
    EXPECT_TRUE(check::close(together[b].narrow(0, 0, n),
                             hidden(ids.narrow(0, b, 1).narrow(1, 0, n))[0], 1e-5))
        << "text " << b;
  }
  auto other = ids.clone();  // the padding is not read
  other[1].narrow(0, 1, 39).fill_(7);
  EXPECT_TRUE(check::identical(hidden(other, lengths)[1][0], together[1][0]));
}

TEST_F(EncoderTest, PackedTextsEqualEachAlone) {
  const std::vector<std::int64_t> lengths{7, 1, 40, 2, 19};
  std::vector<at::Tensor> texts, positions, segments;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    texts.push_back(check::random_ids(1, lengths[i], 50, 10 + i));
    positions.push_back(check::positions(1, lengths[i]));
    segments.push_back(at::full({1, lengths[i]}, static_cast<std::int64_t>(3 * i), at::kLong));
  }
  Batch batch;
  batch.ids = at::cat(texts, 1);
  batch.positions = at::cat(positions, 1);
  batch.segments = at::cat(segments, 1);
  batch.pattern.by_segment = true;
  batch.compute = Compute::f32;
  State none;
  const auto packed = tiny_.model->forward(batch, none).hidden;
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    EXPECT_TRUE(check::close(packed.narrow(1, begin, lengths[i]), hidden(texts[i]), 1e-5)) << i;
    begin += lengths[i];
  }
  // Tokens in any other order, where a text is not one run, take the plain path: the same comes out.
  const auto T = batch.ids.size(1);
  const auto order =
      at::arange(T, at::kLong).mul(31).remainder(T);  // 31 and T have no common divisor
  auto mixed = batch;
  for (auto* x : {&mixed.ids, &mixed.positions, &mixed.segments}) *x = x->index_select(1, order);
  EXPECT_TRUE(
      check::close(tiny_.model->forward(mixed, none).hidden, packed.index_select(1, order), 1e-5));
  for (const auto compute : {Compute::automatic, Compute::int16, Compute::int8}) {
    batch.compute = compute;
    EXPECT_TRUE(check::close(tiny_.model->forward(batch, none).hidden, packed, 2e-2));
  }
}

TEST_F(EncoderTest, EveryTokenSeesEveryOther) {
  auto ids = check::random_ids(1, 9, 50, 2);
  const auto before = hidden(ids);
  ids[0][8] = (ids[0][8] + 1) % 50;
  EXPECT_GT(check::largest_difference(hidden(ids)[0][0], before[0][0]), 1e-4);
}

TEST_F(EncoderTest, TheFastPathIsNear) {
  const auto ids = check::random_ids(2, 30, 50, 3);
  EXPECT_TRUE(check::close(hidden(ids, {}, Compute::automatic), hidden(ids), 2e-2));
}

TEST_F(EncoderTest, IsItsEquations) {
  check::TinyModel tiny(
      "encoder(vocabulary=50, model=8, layers=1, context=40, norm_eps=1e-6, mixer=softmax(heads=1, "
      "rope_theta=0, bias=true), feed_forward=mlp(hidden=12))");
  const auto ids = check::random_ids(1, 5, 50, 4);
  Batch batch;
  batch.ids = ids;
  batch.compute = Compute::f32;
  State none;
  const auto w = [&](const std::string& name) { return tiny.params.find(name)->tensor; };
  const auto norm = [&](const at::Tensor& x, const std::string& name) {
    const auto centred = x - x.mean(-1, true);
    return centred / at::sqrt(centred.square().mean(-1, true) + 1e-6) * w(name + ".weight") +
           w(name + ".bias");
  };
  const auto linear = [&](const at::Tensor& x, const std::string& name) {
    return at::matmul(x, w("layers.0." + name + ".weight").t()) + w("layers.0." + name + ".bias");
  };
  auto x = norm(w("embed.weight").index_select(0, ids[0]) + w("positions.weight").narrow(0, 0, 5) +
                    w("types.weight")[0],
                "norm");
  const auto weights =
      at::softmax(at::matmul(linear(x, "attn.q"), linear(x, "attn.k").t()) / std::sqrt(8.0), -1);
  x = norm(x + linear(at::matmul(weights, linear(x, "attn.v")), "attn.out"), "layers.0.norm1");
  x = norm(x + linear(at::gelu(linear(x, "mlp.up")), "mlp.down"), "layers.0.norm2");
  EXPECT_TRUE(check::close(tiny.model->forward(batch, none).hidden[0], x, 1e-5));
}

TEST_F(EncoderTest, IsDifferentiable) {
  check::TinyModel tiny(kTiny);
  check::Leaves leaves;
  for (const auto& name : tiny.params.names()) {
    auto& x = tiny.params.find(name)->tensor;
    x = x.to(at::kDouble);
    if (name != "types.weight") leaves.emplace_back(name, x);
  }
  const auto ids = check::random_ids(2, 6, 50, 4);
  EXPECT_TRUE(check::gradients_match(
      [&] {
        Batch batch;
        batch.ids = ids;
        batch.lengths = {6, 4};
        batch.mode = Mode::train;
        State none;
        const auto hidden = tiny.model->forward(batch, none).hidden;
        return at::cat({hidden[0], hidden[1].narrow(0, 0, 4)});
      },
      leaves, 6, 1e-5, 1e-5));
}

TEST_F(EncoderTest, RefusesWhatDoesNotFit) {
  check::expect_error(Errc::full, "context of 40",
                      [&] { (void)hidden(check::random_ids(1, 41, 50, 1)); });
  check::expect_error(Errc::invalid, "token id",
                      [&] { (void)hidden(at::full({1, 2}, 50, at::kLong)); });
  Batch batch;
  batch.ids = check::random_ids(1, 4, 50, 1);
  batch.to_layer = 5;
  State none;
  check::expect_error(Errc::invalid, "layers 0 to 5",
                      [&] { (void)tiny_.model->forward(batch, none); });
}

}  // namespace
}  // namespace mneme
