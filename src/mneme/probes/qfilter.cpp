// qfilter: the direction that a head's queries share; a key's component along it tells how much attention it will get.
//
//   Q_h = U S V'             turned queries of query head h over a text, as rows, not centred
//   f_h = sign(mean_i q_i . v_1) v_1
//   f_g = sum_{h in g} f_h / |sum_{h in g} f_h|        for the KV head g that the heads h read
//   E_q[q . k] ~ c (k . f_g),  c > 0: the keys of the smallest k . f_g are missed least
//
// spec      qfilter(tokens=3072, positions=4096)
// holds     "qfilter" [L,H,d]: a unit vector a KV head, in the model's own order of channels
// cost      one pass over the text; O(L Hq d^2) sums a token
// needs     softmax attention
// source    Godey et al. 2025, arXiv:2503.02812
// departs   where the text is shorter than `positions`, its queries are turned as if they stood evenly over them: the model
//           computes them at their own places. The first singular vector comes from the sums of q q', in double precision
// card      papers/q-filters-2025.toml
#include "mneme/core/registry.h"
#include "mneme/probes/attention.h"
#include "mneme/probes/calibration.h"
#include "mneme/probes/moments.h"

#include <ATen/ATen.h>

#include <fmt/format.h>

namespace mneme::probes::qfilter {

class QFilter final : public Calibration {
 public:
  struct Options {
    std::int64_t tokens = 3072, positions = 4096;
  };
  static void describe(Describe& d, Options& o) {
    d("tokens", o.tokens, at_least(64), "of the text's beginning, at most");
    d("positions", o.positions, at_least(1), "the queries stand at positions below this");
  }
  explicit QFilter(const Options& o) : o_(o) {}

  [[nodiscard]] Calibrated run(const LanguageModel& model, const CalibrationText& text,
                               const std::function<void()>& between) const override {
    const auto shape = attention_of(model);
    auto layers = moments_of_layers(shape.layers, shape.heads, shape.width);
    const auto seen =
        watch_text(model, text, "qfilter", o_.tokens, o_.positions, between,
                   [&](std::int64_t layer, const at::Tensor& positions, const at::Tensor& queries,
                       const at::Tensor&) {
                     layers[static_cast<std::size_t>(layer)].add(turned(shape, queries, positions));
                   });
    std::vector<at::Tensor> filters, share, positive;
    for (const auto& layer : layers) {
      auto found = query_filters(layer, shape.kv_heads);
      filters.push_back(std::move(found.filters));
      share.push_back(std::move(found.share));
      positive.push_back(std::move(found.positive));
    }
    const auto shares = at::stack(share), signs = at::stack(positive);
    Calibrated out;
    out.numbers["qfilter"] = at::stack(filters).to(at::kFloat);
    out.figures = {{"explained share, median of heads", median_of(shares)},
                   {"explained share, least", shares.min().item<double>()},
                   {"heads with a positive mean on their filter",
                    (signs > 0).to(at::kDouble).mean().item<double>()}};
    out.by_layer["explained share"] = per_layer(shares.mean(1));
    out.how = fmt::format("{} queries a head at positions below {}", seen.tokens, seen.positions);
    return out;
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<Calibration, QFilter>("qfilter", "the direction that each head's queries share",
                              "q-filters-2025");
}

}  // namespace mneme::probes::qfilter
