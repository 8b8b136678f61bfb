// Probe: a sparse lookup layer in place of one feed-forward of the default model, built from public interfaces alone.
// Each token's hidden vector picks k of n value rows by product keys; gradients of the value table hold only the rows
// that were picked, and the optimizer keeps state for those alone.
//
//   q = W_q x = (q_1, q_2);   score(i, j) = q_1' a_i + q_2' b_j;   y = sum over the best k of softmax(score) v_(i,j)
//
// source    Lample et al. 2019, arXiv:1907.05242
#include "mneme/core/taps.h"
#include "mneme/layers/linear.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "../smollm2.h"
#include "../tensor_check.h"
#include <gtest/gtest.h>
#include <set>
#include <unordered_map>

namespace mneme {
namespace {

class ProductKeyLookup final : public FeedForward {
 public:
  ProductKeyLookup(std::int64_t model, std::int64_t keys, std::int64_t half, std::int64_t k,
                   Params& params)
      : keys_(keys),
        half_(half),
        k_(k),
        query_(params, "query", model, 2 * half),
        first_(params.weight("first.weight", {keys, half})),
        second_(params.weight("second.weight", {keys, half})),
        values_(params.weight("values.weight", {keys * keys, model}, Init::normal_002)) {}

  at::Tensor forward(const at::Tensor& x, Call& call) const override {
    const auto q = query_(x, call).flatten(0, 1);  // [B T, 2 half]
    const auto a = at::matmul(q.narrow(1, 0, half_), first_->tensor.t()).topk(k_, -1),
               b = at::matmul(q.narrow(1, half_, half_), second_->tensor.t()).topk(k_, -1);
    const auto& [a_scores, a_rows] = a;
    const auto& [b_scores, b_rows] = b;
    const auto pairs = (a_scores.unsqueeze(2) + b_scores.unsqueeze(1)).flatten(1);  // [B T, k k]
    const auto rows = (a_rows.unsqueeze(2) * keys_ + b_rows.unsqueeze(1)).flatten(1);
    const auto [scores, best] = pairs.topk(k_, -1);
    picked = rows.gather(1, best);  // [B T, k]
    const auto v =
        at::embedding(values_->tensor, picked, -1, false, /*sparse=*/true);  // [B T, k, D]
    const auto hidden = tap(call, "mlp.act", at::softmax(scores, -1));
    return at::matmul(hidden.unsqueeze(1), v).squeeze(1).view(x.sizes());
  }

  mutable at::Tensor picked;  // of the last call

 private:
  std::int64_t keys_, half_, k_;
  Linear query_;
  std::shared_ptr<Parameter> first_, second_, values_;
};

/// Adam whose moments exist only for rows that have had a gradient.
class SparseAdam {
 public:
  SparseAdam(at::Tensor table, double rate) : table_(std::move(table)), rate_(rate) {}

  void step() {
    const c10::NoGradGuard no_gradient;
    const auto gradient = table_.grad().coalesce();
    const auto rows = gradient.indices()[0];
    for (std::int64_t i = 0; i < rows.numel(); ++i) {
      const auto row = rows[i].item<std::int64_t>();
      auto& moments = rows_[row];
      const auto g = gradient.values()[i];
      if (moments.steps++ == 0)
        moments.first = at::zeros_like(g), moments.second = at::zeros_like(g);
      moments.first.mul_(0.9).add_(g, 0.1);
      moments.second.mul_(0.999).addcmul_(g, g, 0.001);
      const auto t = static_cast<double>(moments.steps);
      table_[row].sub_(rate_ * (moments.first / (1 - std::pow(0.9, t))) /
                       ((moments.second / (1 - std::pow(0.999, t))).sqrt() + 1e-8));
    }
    table_.mutable_grad() = at::Tensor();
  }
  [[nodiscard]] std::set<std::int64_t> rows() const {
    std::set<std::int64_t> out;
    for (const auto& [row, moments] : rows_) out.insert(row);
    return out;
  }

 private:
  struct Moments {
    at::Tensor first, second;
    std::int64_t steps = 0;
  };
  at::Tensor table_;
  double rate_;
  std::unordered_map<std::int64_t, Moments> rows_;
};

class SparseLookupProbe : public ::testing::Test {
 protected:
  static constexpr std::int64_t kLayer = 14;
  void SetUp() override {
    MNEME_NEEDS_SMOLLM2();
    model_ = check::own_smollm2(Compute::f32);
    params_.seed(6);
    lookup_ = std::make_shared<ProductKeyLookup>(576, 32, 16, 4, params_);
    model_->model->set_feed_forward(kLayer, lookup_);
    const auto ids = model_->tokenizer->encode(check::kProse);
    ids_ = at::empty({1, 12}, at::kLong);
    for (std::int64_t t = 0; t < 12; ++t) ids_[0][t] = ids[static_cast<std::size_t>(t)];
    values_ = params_.find("values.weight")->tensor;
  }
  [[nodiscard]] at::Tensor loss(const Taps* taps = nullptr) const {
    auto state = model_->model->start(1);
    Batch batch;
    batch.ids = ids_.narrow(1, 0, 11);
    batch.logits_at = LogitsAt::all;
    batch.mode = Mode::train;
    batch.compute = Compute::f32;
    batch.taps = taps;
    const auto logits = model_->model->forward(batch, state).logits[0];
    return at::cross_entropy_loss(logits, ids_[0].narrow(0, 1, 11));
  }
  static std::set<std::int64_t> set_of(const at::Tensor& x) {
    const auto flat = x.contiguous();
    return {flat.const_data_ptr<std::int64_t>(),
            flat.const_data_ptr<std::int64_t>() + flat.numel()};
  }
  std::unique_ptr<LanguageModel> model_;
  Params params_;
  std::shared_ptr<ProductKeyLookup> lookup_;
  at::Tensor ids_, values_;
};

TEST_F(SparseLookupProbe, GradientsHoldOnlyTheRowsThatWerePicked) {
  params_.requires_grad(true);
  loss().backward();
  ASSERT_TRUE(values_.grad().is_sparse());
  const auto gradient = values_.grad().coalesce();
  EXPECT_EQ(set_of(gradient.indices()), set_of(lookup_->picked));
  EXPECT_LE(gradient.values().size(0), 11 * 4);
  EXPECT_GT(gradient.values().abs().max().item<float>(), 0) << "through fifteen quantized layers";
  for (const auto* name : {"query.weight", "first.weight", "second.weight"})
    EXPECT_GT(params_.find(name)->tensor.grad().abs().max().item<float>(), 0) << name;
  // All picked rows, along the gradient, against a difference: one number alone would move the loss by a few roundings.
  const c10::NoGradGuard no_gradient;
  const auto want = gradient.values().to(at::kDouble).norm().item<double>();
  const double h = 0.02;
  const auto moved_by = [&](double distance) {
    values_.index_add_(0, gradient.indices()[0], gradient.values(), distance / want);
    const auto out = loss().item<double>();
    values_.index_add_(0, gradient.indices()[0], gradient.values(), -distance / want);
    return out;
  };
  EXPECT_NEAR((moved_by(h) - moved_by(-h)) / (2 * h), want, 0.02 * want);
}

TEST_F(SparseLookupProbe, TheOptimizerKeepsStateForTouchedRowsAlone) {
  params_.requires_grad(true);
  const auto before = values_.detach().clone();
  SparseAdam optimizer(values_, 0.02);
  std::set<std::int64_t> touched;
  double first = 0, last = 0;
  for (int step = 0; step < 6; ++step) {
    const auto now = loss();
    if (step == 0) first = now.item<double>();
    last = now.item<double>();
    now.backward();
    touched.merge(set_of(lookup_->picked));
    optimizer.step();
  }
  EXPECT_LT(last, first - 0.05) << "it learns";
  EXPECT_EQ(optimizer.rows(), touched);
  EXPECT_LT(touched.size(), 100u);
  const auto moved = (values_.detach() - before).abs().sum(1).nonzero().flatten();
  EXPECT_EQ(set_of(moved), touched) << "no other row moved";
}

TEST_F(SparseLookupProbe, ItsChoiceCanBeWatched) {
  const c10::NoGradGuard no_gradient;
  std::vector<std::int64_t> sizes;
  Taps taps;
  const std::string point = "layers.14.mlp.act";
  taps.add(point, [&](std::string_view, const at::Tensor& value) {
    sizes = value.sizes().vec();
    return value;
  });
  (void)loss(&taps);
  EXPECT_EQ(sizes, (std::vector<std::int64_t>{11, 4})) << "the weights of the picked rows";
}

}  // namespace
}  // namespace mneme
