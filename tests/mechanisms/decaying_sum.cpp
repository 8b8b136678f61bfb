// decaying_sum: a mixer that only the tests know; it remembers an average that fades at a learned rate.
//
//   S_t = a S_{t-1} + (1 - a) W_in x_t      S: [B,M]   a = sigmoid(decay): [M]
//   y_t = W_out S_t
//
// spec      decaying_sum(width=16)
// state     M numbers per sequence, whatever its length
// cost      O(T M D)
#include "mneme/core/registry.h"
#include "mneme/core/taps.h"
#include "mneme/layers/linear.h"
#include "mneme/mixers/mixer.h"

#include <ATen/ATen.h>

namespace mneme::mechanisms::decaying_sum {

class DecayingSum final : public Mixer {
 public:
  struct Options {
    std::int64_t width = 16;
  };
  static void describe(Describe& d, Options& o) {
    d("width", o.width, at_least(1), "numbers remembered");
  }

  DecayingSum(const Options& o, const Shape& shape, Params& params)
      : o_(o),
        in_(params, "in", shape.model, o.width),
        out_(params, "out", o.width, shape.model),
        decay_(params.weight("decay", {o.width})) {}

  at::Tensor forward(const at::Tensor& x, State& state, Call& call) const override {
    const auto T = x.size(1);
    const auto v = in_(x, call);                                     // [B,T,M]
    const auto a = at::sigmoid(decay_->tensor.to(v.scalar_type()));  // [M]
    auto S = std::as_const(state).tensor("S");
    const auto held = call.lengths.empty() ? at::Tensor() : at::tensor(call.lengths, at::kLong);
    std::vector<at::Tensor> sums;
    for (std::int64_t t = 0; t < T; ++t) {
      const auto next = a * S + (1 - a) * v.select(1, t);
      S = held.defined() ? at::where((held > t).unsqueeze(1), next, S) : next;
      sums.push_back(S);
    }
    if (call.mode != Mode::read_only) state.set("S", tap(call, "state", S));
    return out_(at::stack(sums, 1), call);
  }

  [[nodiscard]] State start(std::int64_t B, const at::TensorOptions& where) const override {
    return State{{"S", at::zeros({B, o_.width}, where)}};
  }

  [[nodiscard]] std::int64_t state_bytes(std::int64_t) const override { return o_.width * 4; }

 private:
  Options o_;
  Linear in_, out_;
  std::shared_ptr<Parameter> decay_;
};

void enrol(Registry& r) {
  r.add<Mixer, DecayingSum>("decaying_sum", "a fading average, for the tests");
}

}  // namespace mneme::mechanisms::decaying_sum
