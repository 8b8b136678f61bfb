#include "mneme/train/gradients.h"

#include "mneme/core/registry.h"
#include "mneme/kernels/level.h"
#include "mneme/layers/lora.h"
#include "mneme/layers/stored_weight.h"

#include <ATen/ATen.h>

#include "../stored_weights.h"
#include "training_fixture.h"
#include <map>

namespace mneme {
namespace {

Parameter frozen(at::Tensor tensor) {
  Parameter out;
  out.tensor = std::move(tensor);
  out.frozen = true;
  return out;
}

using Gradients = std::map<std::string, at::Tensor>;

std::vector<WeightedObjective> objectives(
    const std::vector<std::pair<std::string, double>>& specs = {{"cross_entropy", 1}}) {
  std::vector<WeightedObjective> out;
  for (const auto& [spec, weight] : specs)
    out.push_back({spec, registry().make<Objective>(spec), weight});
  return out;
}

std::vector<const Example*> pointers(const std::vector<Example>& examples) {
  std::vector<const Example*> out;
  for (const auto& example : examples) out.push_back(&example);
  return out;
}

/// What one pass adds to the gradients of fresh ones.
Gradients gradients_of(const Model& model, const Params& adapters, const PackedExamples& examples,
                       LossValue& loss, std::int64_t checkpoint_layers = 0, double share = 1,
                       const std::vector<WeightedObjective>& terms = objectives()) {
  for (const auto& name : adapters.names()) adapters.find(name)->tensor.mutable_grad().reset();
  GradientOptions options;
  options.checkpoint_layers = checkpoint_layers;
  loss = add_gradients(model, examples, terms, share, options);
  Gradients out;
  for (const auto& name : adapters.names()) {
    const auto& gradient = adapters.find(name)->tensor.grad();
    EXPECT_TRUE(gradient.defined()) << name;
    if (gradient.defined()) out[name] = gradient.clone();
  }
  return out;
}

void expect_close(const Gradients& got, const Gradients& want, double most) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, gradient] : want)
    EXPECT_TRUE(check::close(got.at(name), gradient, most)) << name;
}

std::vector<Example> mixed_examples() {
  return {check::random_example(23, 1), check::segmented_example(16, 2),
          check::random_example(7, 3),  check::segmented_example(20, 4),
          check::random_example(3, 5),  check::random_example(4, 6)};
}

TEST(AddGradients, CheckpointedLayersGiveWhatPlainOnesGive) {
  const auto model = check::tiny_language_model();
  const auto adapters = check::random_adapters(*model);
  const auto examples = mixed_examples();
  const auto packed = pack(pointers(examples), 0);
  LossValue want;
  const auto plain = gradients_of(*model->model, adapters, packed, want);
  EXPECT_EQ(plain.size(), 4u * 7 * 2);
  EXPECT_GT(want.total, 0.5);
  for (const std::int64_t group : {1, 2, 3, 4, 100}) {
    LossValue loss;
    const auto got = gradients_of(*model->model, adapters, packed, loss, group);
    EXPECT_NEAR(loss.total, want.total, 1e-6) << "groups of " << group;
    expect_close(got, plain, 1e-6);
  }
}

/// Through weights as files keep them, which are dequantized tile by tile.
TEST(AddGradients, ThroughQuantizedWeights) {
  check::TinyModel dense(check::kTinyDecoder);
  for (const auto type : {WeightType::q4_1, WeightType::q8_0}) {
    Params stored, same;
    for (const auto& name : dense.params.names()) {
      const auto& tensor = dense.params.find(name)->tensor;
      const bool blocks =
          tensor.dim() == 2 && tensor.size(1) % 32 == 0 && name.starts_with("layers.");
      if (blocks) {
        const auto weight =
            check::random_weight(type, tensor.size(0), tensor.size(1), 1 + stored.names().size());
        stored.set(name, parameter_from(weight));
        same.set(name, frozen(dequantize(weight)));
      } else {
        stored.set(name, frozen(tensor));
        same.set(name, frozen(tensor));
      }
    }
    const auto over_stored = registry().make<Model>(check::kTinyDecoder, stored);
    const auto over_same = registry().make<Model>(check::kTinyDecoder, same);
    Params a, b;
    attach_lora(stored, "layers.*.weight", a, 3, 6.0);
    attach_lora(same, "layers.*.weight", b, 3, 6.0);
    a.requires_grad(true);
    b.requires_grad(true);
    const auto examples = mixed_examples();
    const auto packed = pack(pointers(examples), 0);
    LossValue loss, want;
    const auto got = gradients_of(*over_stored, a, packed, loss, 1);
    const auto plain = gradients_of(*over_same, b, packed, want);
    EXPECT_NEAR(loss.total, want.total, 1e-5);
    for (const auto& [name, gradient] : plain) {
      if (name.ends_with("lora_b")) {
        EXPECT_TRUE(check::close(got.at(name), gradient, 1e-4)) << name;
      }
    }
  }
}

/// Asked for bf16, a CPU without such products computes in f32, bit for bit; one that has them does
/// not, or this would show nothing.
TEST(AddGradients, Bf16IsF32WhereTheCpuHasNoSuchProducts) {
  check::TinyModel dense(check::kTinyDecoder);
  Params params;
  for (const auto& name : dense.params.names()) {
    const auto& tensor = dense.params.find(name)->tensor;
    if (tensor.dim() == 2 && tensor.size(1) % 32 == 0 && name.starts_with("layers.")) {
      params.set(name,
                 parameter_from(check::random_weight(WeightType::q8_0, tensor.size(0),
                                                     tensor.size(1), 1 + params.names().size())));
    } else {
      params.set(name, frozen(tensor));
    }
  }
  const auto model = registry().make<Model>(check::kTinyDecoder, params);
  Params adapters;
  attach_lora(params, "layers.*.weight", adapters, 3, 6.0);
  adapters.requires_grad(true);
  const auto examples = mixed_examples();
  const auto before = kernels::level();
  for (const auto level : kernels::supported_levels()) {
    kernels::set_level(level);
    std::map<Compute, Gradients> got;
    for (const auto compute : {Compute::f32, Compute::bf16}) {
      auto packed = pack(pointers(examples), 0);
      packed.batch.compute = compute;
      LossValue loss;
      got[compute] = gradients_of(*model, adapters, packed, loss);
    }
    bool same = true;
    for (const auto& [name, gradient] : got[Compute::f32]) {
      same = same && check::identical(got[Compute::bf16].at(name), gradient);
    }
    EXPECT_EQ(same, !kernels::has_bf16_products()) << kernels::name(level);
  }
  kernels::set_level(before);
}

TEST(AddGradients, SharingRowsChangesNothing) {
  const auto model = check::tiny_language_model();
  const auto adapters = check::random_adapters(*model);
  const auto examples = mixed_examples();
  const auto apart = pack(pointers(examples), 0, false), together = pack(pointers(examples), 0);
  ASSERT_EQ(apart.batch.ids.size(0), 6);
  ASSERT_LT(together.batch.ids.size(0), 6);
  LossValue a, b;
  const auto of_apart = gradients_of(*model->model, adapters, apart, a);
  const auto of_together = gradients_of(*model->model, adapters, together, b);
  EXPECT_NEAR(a.total, b.total, 1e-5);
  expect_close(of_together, of_apart, 1e-5);

  // And each example alone, by the weight of its tokens.
  double sum = 0, weight = 0;
  for (const auto& example : examples) {
    const auto one = pack({&example}, 0);
    LossValue loss;
    (void)gradients_of(*model->model, adapters, one, loss);
    sum += one.weight * loss.total;
    weight += one.weight;
  }
  EXPECT_NEAR(b.total, sum / weight, 1e-5);
}

/// A segment that sees the prefix alone is computed as if the other one were not there.
TEST(AddGradients, SegmentsSeeWhatTheyAreToldTo) {
  const auto model = check::tiny_language_model();
  const auto adapters = check::random_adapters(*model);
  auto example = check::segmented_example(16, 2);
  example.weights.assign(16, 0);
  example.weights[8] = example.weights[9] = example.weights[10] = 1;  // in segment 2
  Example alone;
  for (const std::size_t t : {0, 1, 2, 3, 8, 9, 10, 11}) {
    alone.ids.push_back(example.ids[t]);
    alone.weights.push_back(example.weights[t]);
  }
  LossValue with, without;
  (void)gradients_of(*model->model, adapters, pack({&example}, 0), with);
  (void)gradients_of(*model->model, adapters, pack({&alone}, 0), without);
  EXPECT_NEAR(with.total, without.total, 1e-5);
}

TEST(AddGradients, SharesAddUp) {
  const auto model = check::tiny_language_model();
  const auto adapters = check::random_adapters(*model);
  const auto examples = mixed_examples();
  const auto all = pack(pointers(examples), 0);
  LossValue want;
  const auto whole = gradients_of(*model->model, adapters, all, want);
  for (const auto& name : adapters.names()) adapters.find(name)->tensor.mutable_grad().reset();
  double total = 0;
  for (std::size_t i = 0; i < examples.size(); i += 2) {
    const auto part = pack({&examples[i], &examples[i + 1]}, 0);
    const auto share = part.weight / all.weight;
    total +=
        share * add_gradients(*model->model, part, objectives(), share, GradientOptions()).total;
  }
  EXPECT_NEAR(total, want.total, 1e-5);
  for (const auto& [name, gradient] : whole) {
    EXPECT_TRUE(check::close(adapters.find(name)->tensor.grad(), gradient, 1e-5)) << name;
  }
}

/// The loss against its own definition, from the logits at every token.
TEST(AddGradients, CrossEntropyByItsDefinition) {
  const auto model = check::tiny_language_model();
  const auto adapters = check::random_adapters(*model);
  const auto example = check::random_example(12, 8);
  const double smoothing = 0.1;
  LossValue loss;
  (void)gradients_of(*model->model, adapters, pack({&example}, 0), loss, 0, 1,
                     objectives({{"cross_entropy(label_smoothing=0.1)", 2}}));
  Batch batch;
  batch.ids =
      at::tensor(std::vector<std::int64_t>(example.ids.begin(), example.ids.end()), at::kLong)
          .unsqueeze(0);
  batch.logits_at = LogitsAt::all;
  batch.compute = Compute::f32;
  auto state = model->model->start(1);
  const auto log_p =
      model->model->forward(batch, state).logits[0].detach().to(at::kDouble).log_softmax(-1);
  double sum = 0, weight = 0;
  for (std::int64_t t = 0; t + 1 < 12; ++t) {
    const auto w = example.weights[static_cast<std::size_t>(t)];
    const auto y = example.ids[static_cast<std::size_t>(t + 1)];
    sum += w * -((1 - smoothing) * log_p[t][y].item<double>() +
                 smoothing * log_p[t].mean().item<double>());
    weight += w;
  }
  EXPECT_NEAR(loss.terms.at(0).second, sum / weight, 1e-5);
  EXPECT_NEAR(loss.total, 2 * sum / weight, 2e-5);
}

/// A feed-forward that names a loss, as a mixture of experts does.
class Named final : public FeedForward {
 public:
  [[nodiscard]] at::Tensor forward(const at::Tensor& x, Call& call) const override {
    auto& sum = (*call.aux)["size"];
    const auto own = x.square().mean();
    sum = sum.defined() ? sum + own : own;
    return x * 0.1;
  }
};

TEST(AddGradients, LossesThatLayersNameReachTheirLayers) {
  auto model = check::tiny_language_model();
  for (const std::int64_t layer : {0, 1, 3})
    model->model->set_feed_forward(layer, std::make_shared<Named>());
  Params adapters;
  attach_lora(model->params, "layers.*.attn.*.weight", adapters, 3, 6.0);
  adapters.requires_grad(true);
  const auto example = check::random_example(20, 1);
  const auto packed = pack({&example}, 0);
  const auto terms = objectives({{"cross_entropy", 0.5}, {"aux(name=size)", 0.25}});
  LossValue want;
  const auto plain = gradients_of(*model->model, adapters, packed, want, 0, 1, terms);
  EXPECT_GT(want.terms.at(1).second, 0.1);
  EXPECT_NEAR(want.total, 0.5 * want.terms[0].second + 0.25 * want.terms[1].second, 1e-6);
  LossValue only;
  const auto without = gradients_of(*model->model, adapters, packed, only, 0, 1,
                                    objectives({{"cross_entropy", 0.5}}));
  EXPECT_FALSE(check::close(without.at("layers.0.attn.v.weight.lora_b"),
                            plain.at("layers.0.attn.v.weight.lora_b"), 1e-3));
  for (const std::int64_t group : {1, 2, 3}) {
    LossValue loss;
    const auto got = gradients_of(*model->model, adapters, packed, loss, group, 1, terms);
    EXPECT_NEAR(loss.total, want.total, 1e-5);
    expect_close(got, plain, 1e-5);
  }
  check::expect_error(Errc::invalid, "no layer gives a loss 'sise', did you mean 'size'?", [&] {
    (void)gradients_of(*model->model, adapters, packed, want, 0, 1,
                       objectives({{"aux(name=sise)", 1}}));
  });
  check::expect_error(Errc::usage, "name", [] { (void)registry().make<Objective>("aux"); });
}

TEST(AddGradients, ALossThatIsNoNumberIsRefusedBeforeAnythingIsAdded) {
  const auto model = check::tiny_language_model();
  const auto adapters = check::random_adapters(*model);
  adapters.find(adapters.names().front())->tensor.detach().fill_(std::nan(""));
  const auto example = check::random_example(9, 1);
  check::expect_error(Errc::invalid, "lower learning rate", [&] {
    (void)add_gradients(*model->model, pack({&example}, 0), objectives(), 1, GradientOptions());
  });
  for (const auto& name : adapters.names())
    EXPECT_FALSE(adapters.find(name)->tensor.grad().defined());
}

TEST(AddGradients, StopsBetweenGroups) {
  const auto model = check::tiny_language_model();
  const auto adapters = check::random_adapters(*model);
  const auto example = check::random_example(9, 1);
  GradientOptions options;
  options.checkpoint_layers = 1;
  int calls = 0;
  options.between = [&] {
    if (++calls == 3) throw std::runtime_error("stop");
  };
  EXPECT_THROW((void)add_gradients(*model->model, pack({&example}, 0), objectives(), 1, options),
               std::runtime_error);
  options.between = [&] { ++calls; };
  calls = 0;
  (void)add_gradients(*model->model, pack({&example}, 0), objectives(), 1, options);
  EXPECT_EQ(calls, 7) << "four groups forward, three of them again";
}

}  // namespace
}  // namespace mneme
