// key_pca: the axes along which a head's keys vary, so that a few of their coordinates tell nearly all of a product.
//
//   C = mean (k - m)(k - m)' = P diag(l_1 >= ... >= l_d) P'      keys of one KV head over a text
//   K P, q P: the same products;  Rank@v = least r with l_1 + ... + l_r >= v (l_1 + ... + l_d)
//
// spec      key_pca(space=both, tokens=8192, positions=4096)
// holds     "key_pca.pre", "key_pca.post" [L,H,d,d]: column c is the c-th axis of the keys before and after they are turned to
//           their positions; "key_pca.pre.variance", "key_pca.post.variance" [L,H,d]: its share of the variance
// cost      one pass over the text; O(L H d^2) sums a token
// needs     softmax attention
// source    Singhania et al. 2024, arXiv:2406.02542
// departs   where the text is shorter than `positions`, its keys are turned as if they stood evenly over them
// card      papers/loki-2024.toml
#include "mneme/core/registry.h"
#include "mneme/probes/attention.h"
#include "mneme/probes/calibration.h"
#include "mneme/probes/moments.h"

#include <ATen/ATen.h>

#include <fmt/format.h>

namespace mneme::probes::key_pca {

constexpr double kShare = 0.9;

class KeyPca final : public Calibration {
 public:
  struct Options {
    std::string space = "both";
    std::int64_t tokens = 8192, positions = 4096;
  };
  static void describe(Describe& d, Options& o) {
    d("space", o.space, one_of({"both", "pre", "post"}),
      "keys before or after they are turned to their positions");
    d("tokens", o.tokens, at_least(64), "of the text's beginning, at most");
    d("positions", o.positions, at_least(1), "turned keys stand at positions below this");
  }
  explicit KeyPca(const Options& o) : o_(o) {}

  [[nodiscard]] Calibrated run(const LanguageModel& model, const CalibrationText& text,
                               const std::function<void()>& between) const override {
    const auto shape = attention_of(model);
    const bool want_pre = o_.space != "post", want_post = o_.space != "pre";
    auto pre = moments_of_layers(shape.layers, shape.kv_heads, shape.width),
         post = moments_of_layers(shape.layers, shape.kv_heads, shape.width);
    const auto seen = watch_text(model, text, "key_pca", o_.tokens, o_.positions, between,
                                 [&](std::int64_t layer, const at::Tensor& positions,
                                     const at::Tensor&, const at::Tensor& keys) {
                                   const auto i = static_cast<std::size_t>(layer);
                                   if (want_pre) pre[i].add(keys);
                                   if (want_post) post[i].add(turned(shape, keys, positions));
                                 });
    Calibrated out;
    if (want_pre) add("pre", pre, out);
    if (want_post) add("post", post, out);
    out.how =
        fmt::format("{} keys a head{}", seen.tokens,
                    want_post ? fmt::format(", turned to positions below {}", seen.positions) : "");
    return out;
  }

 private:
  static void add(const std::string& space, const std::vector<Moments>& layers, Calibrated& out) {
    std::vector<at::Tensor> axes, variance;
    for (const auto& layer : layers) {
      auto found = principal_axes(layer);
      axes.push_back(std::move(found.axes));
      variance.push_back(std::move(found.variance));
    }
    const auto shares = at::stack(variance);  // [L,H,d]
    const auto ranks = rank_at(shares, kShare).to(at::kDouble).mean(1);
    const auto name = "key_pca." + space, figure = "Rank@90 " + space;
    out.numbers[name] = at::stack(axes).to(at::kFloat);
    out.numbers[name + ".variance"] = shares.to(at::kFloat);
    out.figures.emplace_back(figure + ", median of layers", median_of(ranks));
    out.by_layer[figure] = per_layer(ranks);
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<Calibration, KeyPca>("key_pca", "the axes along which each head's keys vary", "loki-2024");
}

}  // namespace mneme::probes::key_pca
