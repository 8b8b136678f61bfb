// adamw: Adam with weight decay that stays out of the moments.
//
//   w  <- (1 - lr d) w
//   m  <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2
//   w  <- w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)     t: steps of this weight
//
// spec      adamw(lr=0.001, beta1=0.9, beta2=0.99, eps=1e-08, weight_decay=0)
// state     two numbers and, a tensor, one count a weight
// source    Loshchilov & Hutter 2019, arXiv:1711.05101; Kingma & Ba 2015, arXiv:1412.6980
#include "mneme/core/registry.h"
#include "mneme/train/optimizer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <fmt/format.h>
#include <vector>

namespace mneme::train::adamw {

class AdamW final : public Optimizer {
 public:
  struct Options {
    double lr = 1e-3, beta1 = 0.9, beta2 = 0.99, eps = 1e-8, weight_decay = 0;
  };
  static void describe(Describe& d, Options& o) {
    d("lr", o.lr, above(0), "learning rate");
    d("beta1", o.beta1, within(0, 0.999999), "how slowly the mean of the gradients moves");
    d("beta2", o.beta2, within(0, 0.999999), "how slowly the mean of their squares moves");
    d("eps", o.eps, above(0), "keeps steps finite where gradients vanish");
    d("weight_decay", o.weight_decay, at_least(0), "pull of every weight to zero");
  }

  AdamW(const Options& o, const Params& weights) : o_(o) {
    for (const auto& name : weights.names()) {
      auto parameter = weights.find(name);
      if (!parameter->tensor.defined() || !parameter->tensor.requires_grad()) continue;
      const auto like = parameter->tensor.detach();
      auto mean = at::zeros_like(like), square = at::zeros_like(like);
      slots_.push_back({name, std::move(parameter), mean, square, at::zeros({}, at::kLong)});
    }
  }

  [[nodiscard]] double rate() const override { return o_.lr; }

  void step(double rate) override {
    const c10::NoGradGuard no_gradient;
    for (auto& slot : slots_) {
      auto& weight = slot.parameter->tensor;
      const auto& gradient = weight.grad();
      if (!gradient.defined()) continue;
      const auto t = static_cast<double>(slot.steps.add_(1).item<std::int64_t>());
      if (o_.weight_decay != 0) weight.mul_(1 - rate * o_.weight_decay);
      slot.mean.lerp_(gradient, 1 - o_.beta1);
      slot.square.mul_(o_.beta2).addcmul_(gradient, gradient, 1 - o_.beta2);
      const auto whole_mean = 1 - std::pow(o_.beta1, t), whole_square = 1 - std::pow(o_.beta2, t);
      const auto size = slot.square.sqrt().div_(std::sqrt(whole_square)).add_(o_.eps);
      weight.addcdiv_(slot.mean, size, -rate / whole_mean);
    }
  }

  [[nodiscard]] std::map<std::string, at::Tensor> state() const override {
    std::map<std::string, at::Tensor> out;
    for (const auto& slot : slots_) {
      out[slot.name + ".mean"] = slot.mean;
      out[slot.name + ".square"] = slot.square;
      out[slot.name + ".steps"] = slot.steps;
    }
    return out;
  }

  void load(const std::map<std::string, at::Tensor>& state) override {
    const auto own = this->state();
    for (const auto& [name, tensor] : own) {
      const auto found = state.find(name);
      if (found == state.end() || found->second.sizes() != tensor.sizes() ||
          found->second.scalar_type() != tensor.scalar_type()) {
        throw Error(Errc::mismatch, fmt::format("adamw: the state kept has no fitting '{}'", name));
      }
    }
    if (state.size() != own.size()) {
      throw Error(Errc::mismatch, "adamw: the state kept is that of other weights");
    }
    for (const auto& [name, tensor] : own) tensor.copy_(state.at(name));
  }

 private:
  struct Slot {
    std::string name;
    std::shared_ptr<Parameter> parameter;
    at::Tensor mean, square, steps;
  };
  Options o_;
  std::vector<Slot> slots_;
};

void enrol(Registry& r) { r.add<Optimizer, AdamW>("adamw", "Adam with decoupled weight decay"); }

}  // namespace mneme::train::adamw
