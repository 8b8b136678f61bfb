// cross_entropy: the weighted mean of the surprise at the tokens that are learned.
//
//   loss  = sum_n w_n l_n / sum_n w_n                            n: tokens that are learned
//   l_n   = -(1 - s) log p_n(y_n) - (s / V) sum_v log p_n(v)     s: label smoothing
//
// spec      cross_entropy(label_smoothing=0)
// needs     nothing
// source    Szegedy et al. 2016, arXiv:1512.00567 (label smoothing)
#include "mneme/core/registry.h"
#include "mneme/train/objective.h"

#include <ATen/ATen.h>

namespace mneme::train::cross_entropy {

class CrossEntropy final : public Objective {
 public:
  struct Options {
    double label_smoothing = 0;
  };
  static void describe(Describe& d, Options& o) {
    d("label_smoothing", o.label_smoothing, within(0, 1),
      "share of the target given to all tokens");
  }
  explicit CrossEntropy(const Options& o) : o_(o) {}

  [[nodiscard]] at::Tensor loss(const ObjectiveInput& input) const override {
    const auto each = at::cross_entropy_loss(input.logits, input.targets, {}, at::Reduction::None,
                                             -100, o_.label_smoothing);
    return (each * input.weights).sum() / input.weights.sum();
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<Objective, CrossEntropy>("cross_entropy", "surprise at the tokens that are learned");
}

}  // namespace mneme::train::cross_entropy
