#include "mneme/layers/linear.h"

#include "mneme/kernels/level.h"
#include "mneme/layers/activation.h"
#include "mneme/layers/lora.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "../contracts/gradcheck.h"
#include "../kernels/at_level.h"
#include "../stored_weights.h"
#include <cmath>
#include <gtest/gtest.h>
#include <thread>

namespace mneme {
namespace {

Call f32() {
  Call out;
  out.compute = Compute::f32;
  return out;
}

/// A layer whose weight lies in `params` as a file keeps it, and the same weight as numbers.
struct Stored {
  Params params;
  at::Tensor dense;
  Linear layer;
  Stored(WeightType type, std::int64_t in, std::int64_t out, std::uint64_t seed = 1)
      : Stored(check::random_weight(type, out, in, seed)) {}
  explicit Stored(const WeightTensor& weight)
      : params(with(weight)),
        dense(dequantize(weight)),
        layer(params, "w", weight.shape[1], weight.shape[0]) {}
  static Params with(const WeightTensor& weight) {
    Params out;
    out.set("w.weight", parameter_from(weight));
    return out;
  }
};

class StoredLinear : public ::testing::TestWithParam<WeightType> {};

TEST_P(StoredLinear, EqualsTheDequantizedWeight) {
  const c10::NoGradGuard no_gradient;
  Stored w(GetParam(), 96, 70);
  for (const std::int64_t M : {1, 3, 8, 9, 40}) {
    const auto x = check::normal({M, 96}, 2),
               want = at::mm(x.to(at::kDouble), w.dense.to(at::kDouble).t());
    EXPECT_TRUE(check::close(w.layer(x, f32()), want, 1e-5)) << M << " rows";
    Call at_16_bits;
    at_16_bits.compute = Compute::q16;
    EXPECT_TRUE(check::close(w.layer(x, at_16_bits), want, 1e-4)) << M << " rows, 16 bits";
    // The default type rounds activations to 8 bits or products to bf16.
    EXPECT_TRUE(check::close(w.layer(x, {}), want, 2e-2)) << M << " rows, fast";
    EXPECT_EQ(w.layer(x, {}).scalar_type(), at::kFloat);
  }
}

TEST_P(StoredLinear, MoreRowsThanATile) {
  Stored w(GetParam(), 32, 4100);
  auto x = check::normal({2, 32}, 2).set_requires_grad(true);
  const auto y = w.layer(x, f32());
  EXPECT_TRUE(check::close(y.detach(), at::mm(x.detach(), w.dense.t()), 1e-5));
  const auto g = check::normal({2, 4100}, 3);
  y.backward(g);
  EXPECT_TRUE(check::close(x.grad(), at::mm(g, w.dense), 1e-5));
  const c10::NoGradGuard no_gradient;
  EXPECT_TRUE(check::close(w.layer(x.detach(), f32()), y.detach(), 1e-5));
  EXPECT_TRUE(check::close(w.layer(check::normal({12, 32}, 2), f32()).narrow(0, 0, 1),
                           at::mm(check::normal({12, 32}, 2), w.dense.t()).narrow(0, 0, 1), 1e-5));
}

TEST_P(StoredLinear, GradientsOfTheInput) {
  Stored w(GetParam(), 64, 5);
  const auto x = check::normal({2, 3, 64}, 4, at::kDouble);
  EXPECT_TRUE(check::gradients_match([&] { return w.layer(x, f32()); }, {{"x", x}}));
  EXPECT_FALSE(w.params.find("w.weight")->tensor.defined()) << "the weight stays as stored";
}

/// What layers give together is, to the bit, what each gives alone.
void expect_each_alone(const std::vector<const Linear*>& layers, const at::Tensor& x) {
  for (const auto& call : {f32(), Call{}}) {
    const auto all = Linear::together(layers, x, call);
    ASSERT_EQ(all.size(), layers.size());
    for (std::size_t i = 0; i < all.size(); ++i)
      EXPECT_TRUE(check::identical(all[i], (*layers[i])(x, call))) << i;
  }
}

TEST_P(StoredLinear, TogetherEqualsEachAlone) {
  const c10::NoGradGuard no_gradient;
  Stored a(GetParam(), 64, 33), b(WeightType::q4_1, 64, 64, 9), c(WeightType::f32, 64, 7, 5);
  for (const std::int64_t M : {1, 4, 20}) {
    const auto x = check::normal({M, 64}, 6);
    expect_each_alone({&a.layer, &b.layer, &c.layer}, x);
  }
}

INSTANTIATE_TEST_SUITE_P(EveryType, StoredLinear, ::testing::ValuesIn(kWeightTypes),
                         [](const auto& info) { return std::string(name(info.param)); });

TEST(Linear, BiasAndLeadingSizes) {
  Params params;
  Linear layer(params, "w", 5, 3, true);
  params.find("w.bias")->tensor.copy_(check::normal({3}, 1));
  const auto x = check::normal({2, 4, 5}, 2);
  const auto& w = params.find("w.weight")->tensor;
  const auto y = layer(x, f32());
  ASSERT_EQ(y.sizes(), (at::IntArrayRef{2, 4, 3}));
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t t = 0; t < 4; ++t) {
      for (std::int64_t o = 0; o < 3; ++o) {
        double sum = params.find("w.bias")->tensor[o].item<double>();
        for (std::int64_t i = 0; i < 5; ++i)
          sum += x[b][t][i].item<double>() * w[o][i].item<double>();
        EXPECT_NEAR(y[b][t][o].item<double>(), sum, 1e-5);
      }
    }
  }
  EXPECT_TRUE(check::close(layer(x.transpose(0, 1).contiguous().transpose(0, 1), f32()), y, 1e-6))
      << "strided input";
}

TEST(Linear, ATrainedWeightGetsItsGradient) {
  Params params;
  Linear layer(params, "w", 5, 3, true);
  params.requires_grad(true);
  const auto x = check::normal({7, 5}, 2);
  layer(x, f32()).sum().backward();
  EXPECT_TRUE(check::close(params.find("w.weight")->tensor.grad(), x.sum(0).expand({3, 5}), 1e-5));
  EXPECT_TRUE(check::close(params.find("w.bias")->tensor.grad(), at::full({3}, 7.0), 1e-6));
}

/// Products with plain weights that are kept rounded, where the level has such.
class RoundedLinear : public kernels::AtLevel {
 protected:
  static constexpr Compute kNarrow[] = {Compute::automatic, Compute::bf16, Compute::int16,
                                        Compute::int8};
  /// A layer [70, 96] with a bias over a plain weight of a file.
  struct Plain {
    Params params;
    at::Tensor dense, bias;
    Linear layer;
    explicit Plain(WeightType type, std::uint64_t seed = 1)
        : Plain(check::random_weight(type, 70, 96, seed)) {}
    explicit Plain(const WeightTensor& weight)
        : params(Stored::with(weight)),
          dense(dequantize(weight)),
          layer(params, "w", weight.shape[1], weight.shape[0], true) {
      bias = params.find("w.bias")->tensor;
      bias.copy_(check::normal(bias.sizes(), 5));
    }
    [[nodiscard]] at::Tensor oracle(const at::Tensor& x) const {
      return at::matmul(x.to(at::kDouble), dense.to(at::kDouble).t()) + bias.to(at::kDouble);
    }
    [[nodiscard]] const FileWeight& file() const {
      return dynamic_cast<const FileWeight&>(*params.find("w.weight")->stored);
    }
  };
  static Call in(Compute compute) {
    Call out;
    out.compute = compute;
    return out;
  }
};
INSTANTIATE_TEST_SUITE_P(, RoundedLinear, ::testing::ValuesIn(kernels::kLevels),
                         kernels::level_name);

TEST_P(RoundedLinear, EqualsThePlainWeight) {
  const c10::NoGradGuard no_gradient;
  for (const auto type : {WeightType::f32, WeightType::f16, WeightType::bf16}) {
    const Plain w(type);
    for (const std::int64_t M : {1, 8, 9, 40}) {
      const auto x = check::normal({2, M, 96}, 2), want = w.oracle(x);
      EXPECT_TRUE(check::close(w.layer(x, f32()), want, 1e-5)) << M << " rows";
      for (const auto compute : kNarrow)
        EXPECT_TRUE(check::close(w.layer(x, in(compute)), want, 2e-2)) << M << " rows";
    }
  }
}

TEST_P(RoundedLinear, ActivatesInTheSamePass) {
  const c10::NoGradGuard no_gradient;
  const Plain w(WeightType::f32);
  const auto x = check::normal({3, 7, 96}, 2);
  for (const auto& name : activation_names()) {
    const auto want = activate(name, w.oracle(x));
    EXPECT_TRUE(check::close(w.layer.activated(x, name, f32()), want, 1e-5)) << name;
    for (const auto compute : kNarrow)
      EXPECT_TRUE(check::close(w.layer.activated(x, name, in(compute)), want, 2e-2)) << name;
  }
  check::expect_error(Errc::usage, "did you mean 'gelu'",
                      [&] { (void)w.layer.activated(x, "gelo", in(Compute::int8)); });
  check::expect_error(Errc::invalid, "96 inputs was given 95", [&] {
    (void)w.layer.activated(x.narrow(2, 0, 95), "gelu", in(Compute::int8));
  });
}

TEST_P(RoundedLinear, TogetherEqualsEachAlone) {
  const c10::NoGradGuard no_gradient;
  const Plain a(WeightType::f32), b(WeightType::f16, 2);
  const Stored quantized(WeightType::q4_1, 96, 33);
  for (const std::int64_t M : {1, 20}) {
    const auto x = check::normal({M, 96}, 6);
    for (const auto compute : kNarrow) {
      for (const auto& layers :
           {std::vector{&a.layer, &b.layer}, std::vector{&a.layer, &quantized.layer, &b.layer}}) {
        const auto all = Linear::together(layers, x, in(compute));
        ASSERT_EQ(all.size(), layers.size());
        for (std::size_t i = 0; i < all.size(); ++i)
          EXPECT_TRUE(check::identical(all[i], (*layers[i])(x, in(compute)))) << i;
      }
    }
  }
}

TEST_P(RoundedLinear, StepsAsideForGradientsAndAdapters) {
  const Plain w(WeightType::f32);
  const auto x = check::normal({20, 96}, 2);
  auto tracked = x.clone().set_requires_grad(true);
  const auto y = w.layer.activated(tracked, "gelu", in(Compute::int8));
  EXPECT_TRUE(check::close(y.detach(), at::gelu(w.oracle(x)), 1e-5)) << "exact";
  const auto g = check::normal(y.sizes(), 3);
  y.backward(g);
  auto reference = x.to(at::kDouble).set_requires_grad(true);
  at::gelu(w.oracle(reference)).backward(g.to(at::kDouble));
  EXPECT_TRUE(check::close(tracked.grad(), reference.grad(), 1e-5));

  struct Double final : Adapter {
    at::Tensor apply(const at::Tensor&, const at::Tensor& y) const override { return y * 2; }
  };
  const c10::NoGradGuard no_gradient;
  w.params.attach("w.weight", std::make_shared<Double>());
  EXPECT_TRUE(check::close(w.layer.activated(x, "relu", in(Compute::int8)),
                           at::relu(2 * w.oracle(x)), 2e-2));
}

TEST_P(RoundedLinear, KeepsOneCopyThatIsCounted) {
  const c10::NoGradGuard no_gradient;
  const auto before = FileWeight::narrow_bytes();
  {
    const Plain w(WeightType::f32);
    const auto x = check::normal({20, 96}, 2);
    (void)w.layer(x, f32());
    EXPECT_EQ(FileWeight::narrow_bytes(), before) << "none for products in single precision";
    for (const auto form :
         {kernels::NarrowType::bf16, kernels::NarrowType::int16, kernels::NarrowType::int8}) {
      const auto held = FileWeight::narrow_bytes();
      std::vector<const kernels::NarrowMatrix*> seen(4);
      std::vector<std::thread> threads;
      for (auto& each : seen) threads.emplace_back([&] { each = w.file().narrow(form); });
      for (auto& thread : threads) thread.join();
      for (const auto* each : seen) EXPECT_EQ(each, seen.front()) << "one for all threads";
      EXPECT_EQ(seen.front() != nullptr, kernels::multiplies(form));
      EXPECT_EQ(FileWeight::narrow_bytes() - held, seen.front() ? seen.front()->bytes() : 0);
    }
    (void)w.layer(x, in(Compute::int8));
    const auto after = FileWeight::narrow_bytes();
    (void)w.layer(x, in(Compute::int8));
    EXPECT_EQ(FileWeight::narrow_bytes(), after) << "nothing is made twice";
  }
  EXPECT_EQ(FileWeight::narrow_bytes(), before) << "gone with the weight";
  const FileWeight quantized(check::random_weight(WeightType::q8_0, 4, 64, 1));
  EXPECT_EQ(quantized.narrow(kernels::NarrowType::bf16), nullptr);
}

TEST(Linear, RefusesWhatDoesNotFit) {
  Params params;
  Linear layer(params, "w", 5, 3);
  check::expect_error(Errc::invalid, "5 inputs was given 4",
                      [&] { (void)layer(check::normal({2, 4}, 1), f32()); });
  check::expect_error(Errc::mismatch, "w.weight", [&] { Linear other(params, "w", 5, 4); });
}

TEST(Linear, CountsItsWork) {
  const c10::NoGradGuard no_gradient;
  Stored w(WeightType::q4_1, 64, 32);
  Cost cost;
  Call call = f32();
  call.cost = &cost;
  (void)w.layer(check::normal({3, 64}, 1), call);
  EXPECT_EQ(cost.flops, 2.0 * 3 * 64 * 32);
  EXPECT_EQ(cost.bytes, 64 / 32 * 20 * 32);
}

TEST(LoRA, AddsItsLowRankProduct) {
  Stored w(WeightType::q8_0, 32, 6);
  Params adapters;
  EXPECT_EQ(attach_lora(w.params, "*.weight", adapters, 2, 8.0), 1);
  const auto x = check::normal({4, 32}, 1);
  EXPECT_TRUE(check::close(w.layer(x, f32()), at::mm(x, w.dense.t()), 1e-5))
      << "starts without effect";
  const auto names = adapters.names();
  ASSERT_EQ(names, (std::vector<std::string>{"w.weight.lora_a", "w.weight.lora_b"}));
  auto a = adapters.find(names[0])->tensor, b = adapters.find(names[1])->tensor;
  b.copy_(check::normal(b.sizes(), 3));
  const auto want = at::mm(x, w.dense.t()) + 4.0 * at::mm(at::mm(x, a.t()), b.t());
  EXPECT_TRUE(check::close(w.layer(x, f32()), want, 1e-5));
  EXPECT_TRUE(check::close(Linear::together({&w.layer, &w.layer}, x, f32())[1], want, 1e-5));
  {
    const c10::NoGradGuard no_gradient;
    EXPECT_TRUE(check::close(w.layer(x, {}), want, 2e-2)) << "on the fast path too";
  }
}

TEST(LoRA, TrainsBesideAFrozenWeight) {
  Stored w(WeightType::q4_0, 32, 6);
  Params adapters;
  attach_lora(w.params, "w*", adapters, 2, 2.0);
  for (const auto& name : adapters.names()) {
    auto& x = adapters.find(name)->tensor;
    x = check::normal(x.sizes(), 3, at::kDouble);
  }
  const auto x = check::normal({3, 32}, 1, at::kDouble);
  check::Leaves leaves{{"x", x}};
  for (const auto& name : adapters.names()) leaves.emplace_back(name, adapters.find(name)->tensor);
  EXPECT_TRUE(check::gradients_match([&] { return w.layer(x, f32()); }, leaves));
}

TEST(LoRA, SaysWhenNothingMatches) {
  Stored w(WeightType::q4_0, 32, 6);
  Params adapters;
  check::expect_error(Errc::not_found, "layers.9",
                      [&] { attach_lora(w.params, "layers.9.*", adapters, 2, 2.0); });
}

/// Frozen low-rank numbers beside a weight, as an adapter file's are, and the update in double precision.
struct Frozen {
  Params adapters;
  at::Tensor update;  // [out, in]
  Frozen(Params& model, std::int64_t in, std::int64_t out, std::int64_t rank, at::ScalarType type,
         std::uint64_t seed = 31) {
    const auto part = [&](const char* name, at::IntArrayRef sizes, std::uint64_t part_seed) {
      Parameter p;
      p.tensor = (0.3 * check::normal(sizes, part_seed)).to(type);
      p.frozen = true;
      adapters.set(name, p);
      return p.tensor.to(at::kDouble);
    };
    const auto a = part("w.weight.lora_a", {rank, in}, seed),
               b = part("w.weight.lora_b", {out, rank}, seed + 1);
    update = 0.5 * at::mm(b, a);
    attach_lora(model, "w.weight", adapters, rank, 0.5 * static_cast<double>(rank));
  }
};

class FrozenLoRA : public ::testing::TestWithParam<WeightType> {};

TEST_P(FrozenLoRA, ErrsNoMoreThanTheProductItself) {
  const c10::NoGradGuard no_gradient;
  for (const auto type : {at::kHalf, at::kBFloat16, at::kFloat}) {
    for (const std::int64_t rank : {1, 12, 70}) {
      Stored w(GetParam(), 96, 70), base(GetParam(), 96, 70);
      const Frozen frozen(w.params, 96, 70, rank, type);
      for (const std::int64_t M : {1, 3, 8, 9, 40, 200, 400}) {
        const auto x = check::normal({M, 96}, 2), wide = x.to(at::kDouble);
        const auto plain = at::mm(wide, w.dense.to(at::kDouble).t()),
                   want = plain + at::mm(wide, frozen.update.t());
        EXPECT_TRUE(check::close(w.layer(x, f32()), want, 1e-6)) << M << " rows, rank " << rank;
        // Products that libtorch makes in bf16 round their results too, which those with a kept rounded weight do not.
        const auto result = kernels::has_bf16_products() && M > 8
                                ? check::rms_error(plain.to(at::kBFloat16), plain)
                                : 0.0;
        const auto own = std::hypot(check::rms_error(base.layer(x, {}), plain), result);
        EXPECT_TRUE(check::close(w.layer(x, {}), want, 1.5 * own + 1e-6))
            << M << " rows, rank " << rank << ", fast; the product alone errs by " << own;
      }
    }
  }
}

TEST_P(FrozenLoRA, OneRowEqualsManyAndMoreRowsThanATile) {
  const c10::NoGradGuard no_gradient;
  Stored w(GetParam(), 32, 4103);
  const Frozen frozen(w.params, 32, 4103, 12, at::kHalf);
  const auto x = check::normal({12, 32}, 2);
  const auto all = w.layer(x, f32());
  EXPECT_TRUE(check::close(
      all, at::mm(x.to(at::kDouble), (w.dense.to(at::kDouble) + frozen.update).t()), 1e-6));
  for (std::int64_t m = 0; m < 12; m += 5)
    EXPECT_TRUE(check::close(w.layer(x.narrow(0, m, 1), f32()), all.narrow(0, m, 1), 1e-6));
  EXPECT_TRUE(check::close(w.layer(x, {}), all, 2e-2));
}

TEST_P(FrozenLoRA, TogetherEqualsEachAlone) {
  const c10::NoGradGuard no_gradient;
  Stored a(GetParam(), 64, 33), b(WeightType::q4_1, 64, 64, 9), c(WeightType::f32, 64, 7, 5);
  const Frozen of_a(a.params, 64, 33, 12, at::kHalf), of_c(c.params, 64, 7, 40, at::kFloat);
  for (const std::int64_t M : {1, 4, 20}) {
    const auto x = check::normal({2, M, 64}, 6);
    expect_each_alone({&a.layer, &b.layer, &c.layer}, x);
  }
}

TEST_P(FrozenLoRA, PassesTheGradientOn) {
  Stored w(GetParam(), 64, 5);
  const Frozen frozen(w.params, 64, 5, 3, at::kHalf);
  const auto x = check::normal({2, 3, 64}, 4, at::kDouble);
  EXPECT_TRUE(check::gradients_match([&] { return w.layer(x, f32()); }, {{"x", x}}));
  const auto want = at::matmul(x, (w.dense.to(at::kDouble) + frozen.update).t());
  EXPECT_TRUE(check::close(w.layer(x, f32()).detach(), want, 1e-6));
}

INSTANTIATE_TEST_SUITE_P(EveryType, FrozenLoRA, ::testing::ValuesIn(kWeightTypes),
                         [](const auto& info) { return std::string(name(info.param)); });

TEST(LoRA, BesideAFloatWeightWithABias) {
  const c10::NoGradGuard no_gradient;
  Params params;
  Linear layer(params, "w", 40, 19, true);
  params.find("w.bias")->tensor.copy_(check::normal({19}, 1));
  const Frozen one(params, 40, 19, 12, at::kHalf), two(params, 40, 19, 2, at::kFloat, 50);
  const auto dense = params.find("w.weight")->tensor.to(at::kDouble) + one.update + two.update;
  for (const std::int64_t M : {0, 1, 9, 40}) {
    const auto x = check::normal({2, M, 40}, 2);
    const auto want =
        at::matmul(x.to(at::kDouble), dense.t()) + params.find("w.bias")->tensor.to(at::kDouble);
    EXPECT_TRUE(check::close(layer(x, f32()), want, 1e-6)) << M;
    EXPECT_TRUE(check::close(layer(x, {}), want, 2e-2)) << M;
  }
  const auto strided = check::normal({40, 9}, 2).t();
  EXPECT_TRUE(check::close(layer(strided, f32()), layer(strided.contiguous(), f32()), 1e-6));
}

TEST(LoRA, KeepsItsPlaceAmongOtherAdapters) {
  const c10::NoGradGuard no_gradient;
  struct Double final : Adapter {
    at::Tensor apply(const at::Tensor&, const at::Tensor& y) const override { return y * 2; }
  };
  for (const std::int64_t M : {2, 20}) {
    Stored w(WeightType::q4_1, 32, 6);
    const Frozen before(w.params, 32, 6, 2, at::kHalf);
    w.params.attach("w.*", std::make_shared<Double>());
    const Frozen after(w.params, 32, 6, 2, at::kHalf, 77);
    const auto x = check::normal({M, 32}, 1);
    const auto dense = 2 * (w.dense.to(at::kDouble) + before.update) + after.update;
    EXPECT_TRUE(check::close(w.layer(x, f32()), at::mm(x.to(at::kDouble), dense.t()), 1e-6));
  }
}

TEST(LoRA, OfAnotherMatrixIsRefused) {
  Stored small(WeightType::q4_1, 32, 6), large(WeightType::q4_1, 64, 6);
  const Frozen frozen(small.params, 32, 6, 2, at::kHalf);
  large.params.find("w.weight")->adapters = small.params.find("w.weight")->adapters;
  check::expect_error(Errc::mismatch, "matrix [6, 32] is attached to one that is [6, 64]",
                      [&] { (void)large.layer(check::normal({2, 64}, 1), f32()); });
}

TEST(LoRA, CountsItsWork) {
  const c10::NoGradGuard no_gradient;
  Stored w(WeightType::q4_1, 64, 32);
  const Frozen frozen(w.params, 64, 32, 4, at::kHalf);
  Cost cost;
  Call call = f32();
  call.cost = &cost;
  (void)w.layer(check::normal({3, 64}, 1), call);
  EXPECT_EQ(cost.flops, 2.0 * 3 * 64 * 32 + 2.0 * 3 * 4 * (64 + 32));
  EXPECT_EQ(cost.bytes, 64 / 32 * 20 * 32 + 2 * 4 * (64 + 32));
}

/// Adapters apply one after another, each to what the ones before it left.
TEST(Adapters, ApplyInOrder) {
  struct Add final : Adapter {
    at::Tensor apply(const at::Tensor&, const at::Tensor& y) const override { return y + 1; }
  };
  struct Double final : Adapter {
    at::Tensor apply(const at::Tensor&, const at::Tensor& y) const override { return y * 2; }
  };
  Params params;
  Linear layer(params, "w", 4, 4);
  const auto x = check::normal({2, 4}, 1);
  const auto plain = layer(x, f32());
  EXPECT_EQ(params.attach("w.*", std::make_shared<Add>()), 1);
  EXPECT_EQ(params.attach("w.*", std::make_shared<Double>()), 1);
  EXPECT_TRUE(check::close(layer(x, f32()), (plain + 1) * 2, 1e-6));
}

}  // namespace
}  // namespace mneme
