#include "mneme/train/gradients.h"

#include "mneme/core/error.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <fmt/format.h>

namespace mneme {
namespace {

using AuxLosses = std::map<std::string, at::Tensor>;

/// Layers [from, to) over hidden states x, with a State of their own.
Output run_layers(const Model& model, const PackedExamples& examples, const at::Tensor& x,
                  std::int64_t from, std::int64_t to, const GradientOptions& options) {
  options.between();
  auto batch = examples.batch;
  batch.ids.reset();
  batch.embeddings = x;
  batch.from_layer = from;
  batch.to_layer = to;
  if (to < model.shape().layers) {
    batch.logits_at = LogitsAt::none;
    batch.chosen.reset();
  }
  auto state = model.start(x.size(0));
  state.generator = options.generator.split(static_cast<std::uint64_t>(from));
  return model.forward(batch, state);
}

/// The same values, from which a gradient is wanted but goes no further.
at::Tensor leaf(const at::Tensor& x) { return x.detach().set_requires_grad(true); }

}  // namespace

LossValue add_gradients(const Model& model, const PackedExamples& examples,
                        const std::vector<WeightedObjective>& objectives, double share,
                        const GradientOptions& options) {
  const auto layers = model.shape().layers;
  const auto group = options.checkpoint_layers > 0 ? options.checkpoint_layers : layers;
  const auto embedded = model.embed(examples.batch.ids);

  // What stays of the groups before the last: what goes into each, and the losses that it named.
  // Every group's input wants a gradient, the first one's too, so that all products run alike.
  std::vector<at::Tensor> inputs{leaf(embedded)};
  std::vector<AuxLosses> named;
  std::int64_t from = 0;
  for (; from + group < layers; from += group) {
    auto out = run_layers(model, examples, inputs.back(), from, from + group, options);
    inputs.push_back(leaf(out.hidden));
    named.emplace_back();
    for (const auto& [name, loss] : out.aux) named.back()[name] = leaf(loss);
  }

  LossValue value;
  {
    auto out = run_layers(model, examples, inputs.back(), from, layers, options);
    ObjectiveInput input{out.logits, examples.targets, examples.weights, out.hidden, out.aux};
    for (const auto& of_group : named) {
      for (const auto& [name, loss] : of_group) {
        auto& sum = input.aux[name];
        sum = sum.defined() ? sum + loss : loss;
      }
    }
    at::Tensor total;
    for (const auto& term : objectives) {
      const auto loss = term.objective->loss(input);
      value.terms.emplace_back(term.name, loss.item<double>());
      total = total.defined() ? total + term.weight * loss : term.weight * loss;
    }
    value.total = total.item<double>();
    if (!std::isfinite(value.total)) {
      throw Error(Errc::invalid,
                  fmt::format("the loss is {}: try a lower learning rate", value.total));
    }
    (share * total).backward();
  }

  for (auto g = named.size(); g-- > 0;) {
    const auto to = from;
    from -= group;
    auto out = run_layers(model, examples, inputs[g], from, to, options);
    std::vector<at::Tensor> roots, gradients;
    const auto add = [&](const at::Tensor& root, const at::Tensor& gradient) {
      if (!root.requires_grad() || !gradient.defined()) return;
      roots.push_back(root);
      gradients.push_back(gradient);
    };
    add(out.hidden, inputs[g + 1].grad());
    for (const auto& [name, loss] : out.aux) add(loss, named[g].at(name).grad());
    inputs.pop_back();
    torch::autograd::backward(roots, gradients);
  }
  if (embedded.requires_grad()) embedded.backward(inputs.front().grad());
  return value;
}

}  // namespace mneme
