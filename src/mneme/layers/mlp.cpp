// mlp: the plain two-layer feed-forward with biases.
//
//   y = W_2 act(W_1 x + b_1) + b_2      W_1: [hidden, D], W_2: [D, hidden]
//
// spec      mlp(hidden=1536, activation=gelu)
// state     none
// cost      4 T D hidden FLOPs
// source    Vaswani et al. 2017, arXiv:1706.03762
#include "mneme/core/registry.h"
#include "mneme/core/taps.h"
#include "mneme/layers/activation.h"
#include "mneme/layers/feed_forward.h"
#include "mneme/layers/linear.h"

namespace mneme::layers::mlp {

class Mlp final : public FeedForward {
 public:
  struct Options {
    std::int64_t hidden = 1536;
    std::string activation = "gelu";
  };
  static void describe(Describe& d, Options& o) {
    d("hidden", o.hidden, at_least(1), "width of the middle");
    d("activation", o.activation, one_of(activation_names()), "between the two layers");
  }

  Mlp(const Options& o, const Shape& shape, Params& params)
      : o_(o),
        up_(params, "up", shape.model, o.hidden, true),
        down_(params, "down", o.hidden, shape.model, true) {}

  at::Tensor forward(const at::Tensor& x, Call& call) const override {
    return down_(tap(call, "mlp.act", up_.activated(x, o_.activation, call)), call);
  }

 private:
  Options o_;
  Linear up_, down_;
};

void enrol(Registry& r) {
  r.add<FeedForward, Mlp>("mlp", "two linear layers with an activation between");
}

}  // namespace mneme::layers::mlp
