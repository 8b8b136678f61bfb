// glu: a gated feed-forward.
//
//   y = W_d (act(W_g x) * W_u x)      W_g, W_u: [hidden, D], W_d: [D, hidden]
//
// spec      glu(hidden=1536, activation=silu)
// state     none
// cost      6 T D hidden FLOPs
// source    Shazeer 2020, arXiv:2002.05202
#include "mneme/kernels/glu.h"

#include "mneme/core/registry.h"
#include "mneme/core/taps.h"
#include "mneme/layers/activation.h"
#include "mneme/layers/feed_forward.h"
#include "mneme/layers/linear.h"

#include <ATen/ATen.h>

namespace mneme::layers::glu {

class Glu final : public FeedForward {
 public:
  struct Options {
    std::int64_t hidden = 1536;
    std::string activation = "silu";
  };
  static void describe(Describe& d, Options& o) {
    d("hidden", o.hidden, at_least(1), "width of the gated middle");
    d("activation", o.activation, one_of(activation_names()), "what the gate passes through");
  }

  Glu(const Options& o, const Shape& shape, Params& params)
      : o_(o),
        gate_(params, "gate", shape.model, o.hidden),
        up_(params, "up", shape.model, o.hidden),
        down_(params, "down", o.hidden, shape.model) {}

  at::Tensor forward(const at::Tensor& x, Call& call) const override {
    auto both = Linear::together({&gate_, &up_}, x, call);
    return down_(tap(call, "mlp.act", gated(std::move(both[0]), both[1])), call);
  }

 private:
  /// act(gate) * up; may overwrite the gate.
  [[nodiscard]] at::Tensor gated(at::Tensor gate, const at::Tensor& up) const {
    if (gate.requires_grad() || up.requires_grad())
      return activate(o_.activation, std::move(gate)) * up;
    const bool one_pass = o_.activation == "silu" && gate.is_cpu() &&
                          gate.scalar_type() == at::kFloat && gate.is_contiguous() &&
                          up.is_contiguous();
    if (!one_pass) return activate(o_.activation, std::move(gate)).mul_(up);
    auto* numbers = gate.mutable_data_ptr<float>();
    kernels::silu_multiply(numbers, up.const_data_ptr<float>(), numbers, gate.numel());
    return gate;
  }

  Options o_;
  Linear gate_, up_, down_;
};

void enrol(Registry& r) { r.add<FeedForward, Glu>("glu", "gated linear unit"); }

}  // namespace mneme::layers::glu
