// fastgen: every head keeps by the smallest of a few rules that still recovers what it attends to.
//
//   C_0 = first tokens and special ids
//   C_1 = C_0 + punctuation ids
//   C_2 = C_1 + the best ceil(frequent n) by column sums     n: tokens seen
//   C_3 = C_2 + the last ceil(local n)
//   C_4 = everything
//   r_C = min_g mean_i sum_{j in C} a_gij   i: the last `window` queries; 1 - r is what the head's rows lose
//   s_j = 0 for entries of the first C with r_C >= recover, -inf for all others
//
// spec      fastgen(recover=0.95, frequent=0.3, local=0.3, window=64, first=1, special=[], punctuation=[])
// holds     what the rule of each head says; a sum per entry and query head, the last `window` queries, token ids
// needs     column sums, the rows of the last `window` queries, token ids; a stage that drops what is forced out:
//           `fastgen | threshold(when=end)`
// source    Ge et al. 2023, arXiv:2310.01801
// departs   a rule is chosen anew whenever scores are asked for, not once for the whole generation: with when=end that is
//           once, and what comes afterwards all stays. A KV head keeps what its most demanding query head needs
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace mneme::kv::fastgen {

class FastGen final : public ScoreStage {
 public:
  struct Options {
    double recover = 0.95, frequent = 0.3, local = 0.3;
    std::int64_t window = 64, first = 1;
    std::vector<std::int64_t> special, punctuation;
  };
  static void describe(Describe& d, Options& o) {
    d("recover", o.recover, within(0, 1), "part of its attention that a head has to keep");
    d("frequent", o.frequent, within(0, 1), "part of the tokens that are kept as heavy hitters");
    d("local", o.local, within(0, 1), "part of the tokens that are kept as the last ones");
    d("window", o.window, at_least(1), "last queries that a rule is tried on");
    d("first", o.first, at_least(0), "first tokens that are special");
    d("special", o.special, "ids of tokens that are special");
    d("punctuation", o.punctuation, "ids of tokens that are punctuation");
  }
  explicit FastGen(const Options& o) : o_(o) {}

  [[nodiscard]] Needs needs() const override {
    Needs needs;
    needs.attention = AttentionLevel::column_sums;
    needs.query_window = o_.window;
    needs.token_ids = true;
    return needs;
  }

  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h) {
      const auto head = layer.head(h);
      auto scores = at::zeros({head.entries()});
      if (o_.recover < 1 && !layer.query_positions().empty()) {
        const auto rule = smallest_rule(layer, h);
        auto* score = scores.mutable_data_ptr<float>();
        for (std::size_t j = 0; j < rule.size(); ++j) {
          if (!rule[j]) score[j] = -std::numeric_limits<float>::infinity();
        }
      }
      out.push_back(std::move(scores));
    }
    return out;
  }

 private:
  /// Which entries of a head stay.
  [[nodiscard]] std::vector<bool> smallest_rule(const LayerView& layer, std::int64_t h) const {
    const auto head = layer.head(h);
    const auto N = static_cast<std::size_t>(head.entries());
    const auto of_rows = layer.window_weights(h, o_.window).mean(1).contiguous();  // [G,N]
    const auto* weight = of_rows.const_data_ptr<float>();
    const auto of_ids = layer.token_ids(h).contiguous();
    const auto* id = of_ids.const_data_ptr<std::int64_t>();
    std::vector<bool> rule(N);
    const auto enough = [&] {
      for (std::int64_t g = 0; g < layer.group; ++g) {
        double recovered = 0;
        for (std::size_t j = 0; j < N; ++j)
          recovered += rule[j] ? weight[static_cast<std::size_t>(g) * N + j] : 0;
        if (!(recovered >= o_.recover)) return false;
      }
      return true;
    };
    const auto holds = [](const std::vector<std::int64_t>& ids, std::int64_t x) {
      return std::find(ids.begin(), ids.end(), x) != ids.end();
    };
    const auto part = [&](double share) {
      return std::min(
          N, static_cast<std::size_t>(std::ceil(share * static_cast<double>(layer.moment.seen))));
    };
    for (std::size_t j = 0; j < N; ++j)
      rule[j] = head.token_indices[j] < o_.first || holds(o_.special, id[j]);
    if (enough()) return rule;
    for (std::size_t j = 0; j < N; ++j) rule[j] = rule[j] || holds(o_.punctuation, id[j]);
    if (enough()) return rule;
    const auto received = layer.column_sums(h).mean(0).contiguous();
    const auto* sum = received.const_data_ptr<float>();
    std::vector<std::size_t> order(N);
    std::iota(order.begin(), order.end(), 0);
    const auto rank = [&](std::size_t j) { return std::isnan(sum[j]) ? -1.0F : sum[j]; };
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return rank(a) > rank(b); });
    for (std::size_t i = 0; i < part(o_.frequent); ++i) rule[order[i]] = true;
    if (enough()) return rule;
    for (std::size_t i = 0; i < part(o_.local); ++i) rule[N - 1 - i] = true;
    if (enough()) return rule;
    return std::vector<bool>(N, true);
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, FastGen>("fastgen", "each head by the smallest rule that recovers its attention",
                          "fastgen-2023");
}

}  // namespace mneme::kv::fastgen
