// duo: heads that look things up far back keep everything, all others the first and the last tokens.
//
//   s_t = 0      for every entry of the best keep_heads L H heads of the model
//   s_t = 0      for t < sinks and the last `recent` entries of the others;   -inf for what lies between
//   a KV head is as good as the best of the query heads that share it
//
// spec      duo(keep_heads=0.25, sinks=4, recent=256)
// holds     sinks + recent entries of a streaming head; a head that is kept grows with the text
// needs     the head profile "retrieval_heads" [L,Hq]; a stage that drops what is forced out: `duo | threshold`
// source    Xiao et al. 2024, arXiv:2410.10819
// departs   heads are ranked by how often they copy what they look at (Wu et al. 2024, arXiv:2404.15574), not by gates that
//           were trained for it
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/kv/head_profile.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <limits>

namespace mneme::kv::duo {

class Duo final : public ScoreStage {
 public:
  struct Options {
    double keep_heads = 0.25;
    std::int64_t sinks = 4, recent = 256;
  };
  static void describe(Describe& d, Options& o) {
    d("keep_heads", o.keep_heads, within(0, 1), "share of the model's heads that keep everything");
    d("sinks", o.sinks, at_least(0), "first tokens that the others keep");
    d("recent", o.recent, at_least(1), "last entries that the others keep");
  }
  explicit Duo(const Options& o) : o_(o) {}

  [[nodiscard]] Needs needs() const override {
    Needs needs;
    needs.head_profile = "retrieval_heads";
    return needs;
  }

  void calibrate(const HeadProfile& profile) override {
    const auto& found = profile.find("retrieval_heads");
    if (found.dim() != 2) throw misfit(found.sizes(), "[layers, query heads]");
    heads_ = found.to(at::kCPU, at::kFloat).contiguous();
  }

  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    if (heads_.size(0) != layer.layers || heads_.size(1) % layer.heads != 0)
      throw misfit(heads_.sizes(),
                   fmt::format("[{}, a multiple of {}]", layer.layers, layer.heads));
    const auto kept = kept_heads(layer.heads);
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h) {
      const auto head = layer.head(h);
      const auto N = head.entries();
      auto scores = at::zeros({N});
      if (!kept[static_cast<std::size_t>(layer.layer * layer.heads + h)]) {
        auto* score = scores.mutable_data_ptr<float>();
        for (std::int64_t i = 0; i < N - o_.recent; ++i) {
          if (head.token_indices[static_cast<std::size_t>(i)] >= o_.sinks)
            score[i] = -std::numeric_limits<float>::infinity();
        }
      }
      out.push_back(std::move(scores));
    }
    return out;
  }

 private:
  /// [layers x heads] whether a KV head keeps everything.
  [[nodiscard]] std::vector<bool> kept_heads(std::int64_t heads) const {
    const auto best = heads_.view({heads_.size(0) * heads, -1}).amax(1);
    const auto count = std::llround(o_.keep_heads * static_cast<double>(best.numel()));
    const auto order = std::get<1>(best.sort(/*stable=*/true, 0, /*descending=*/true));
    std::vector<bool> out(static_cast<std::size_t>(best.numel()));
    for (std::int64_t i = 0; i < count; ++i)
      out[static_cast<std::size_t>(order.const_data_ptr<std::int64_t>()[i])] = true;
    return out;
  }

  static Error misfit(at::IntArrayRef seen, std::string_view wanted) {
    return {
        Errc::mismatch,
        fmt::format("duo: the head profile's numbers are [{}] where {} are wanted: measure them "
                    "on this model with `mneme calibrate retrieval_heads`",
                    fmt::join(seen, ", "), wanted)};
  }

  Options o_;
  at::Tensor heads_;  // [L,Hq]
};

void enrol(Registry& r) {
  r.add<KvStage, Duo>("duo", "heads that look far back keep everything, others ends only",
                      "duo-attention-2024");
}

}  // namespace mneme::kv::duo
