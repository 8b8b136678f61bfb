// think: hold only those channels of a head's keys that the last queries weigh.
//
//   |Q_w K' - Q_w S K'|_F is least, over diagonal 0/1 matrices S that drop n
//   channels, where S drops those of the lowest score_c = |Q_w[:,c]| |K[:,c]|
//   (mean over the query heads of a KV head; exact for each channel alone)
//
// spec      think(lambda=0.4, window=32, recent=32, by=queries)
// holds     keys of d - round(lambda d) numbers once the prompt is complete;
// the newest `recent` and all that comes later
//           stay whole; values are never narrowed
// needs     the last `window` queries
// source    Xu et al. 2025, arXiv:2407.21018
// departs   by=keys leaves the queries out and by=random draws channels:
// controls
#include "mneme/core/generator.h"
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace mneme::kv::think {

class Think final : public NarrowStage {
 public:
  struct Options {
    double lambda = 0.4;
    std::int64_t window = 32, recent = 32;
    std::string by = "queries";
  };
  static void describe(Describe &d, Options &o) {
    d("lambda", o.lambda, within(0, 0.95), "share of a key's channels that is dropped");
    d("window", o.window, at_least(1), "last queries that weigh the channels");
    d("recent", o.recent, at_least(0), "newest entries that stay whole");
    d("by", o.by, one_of({"queries", "keys", "random"}), "what tells channels apart");
  }
  explicit Think(const Options &o) : o_(o) {}

  [[nodiscard]] Needs needs() const override {
    Needs out;
    out.query_window = o_.window;
    return out;
  }
  [[nodiscard]] std::int64_t recent() const override { return o_.recent; }

  [[nodiscard]] std::vector<std::uint8_t> channels(const LayerView &layer,
                                                   std::int64_t head) const override {
    const auto keys = layer.keys(head);
    const auto d = keys.size(1);
    auto score = keys.norm(2, {0});
    if (o_.by == "queries") {
      auto queries = layer.queries(head);  // [G,w,d]
      const auto w = std::min(o_.window, queries.size(1));
      queries = queries.narrow(1, queries.size(1) - w, w);
      score = score * queries.norm(2, {1}).mean(0);
    } else if (o_.by == "random") {
      auto generator = Generator(17)
                           .split(static_cast<std::uint64_t>(layer.layer))
                           .split(static_cast<std::uint64_t>(head));
      for (std::int64_t c = 0; c < d; ++c) score[c] = generator.uniform();
    }
    const auto *scores = score.const_data_ptr<float>();
    std::vector<std::uint8_t> out(static_cast<std::size_t>(d));
    std::iota(out.begin(), out.end(), std::uint8_t{0});
    const auto keep = std::max<std::int64_t>(
        1, d - static_cast<std::int64_t>(std::lround(o_.lambda * static_cast<double>(d))));
    std::stable_sort(out.begin(), out.end(),
                     [&](std::uint8_t a, std::uint8_t b) { return scores[a] > scores[b]; });
    out.resize(static_cast<std::size_t>(keep));
    std::sort(out.begin(), out.end());
    return out;
  }

 private:
  Options o_;
};

void enrol(Registry &r) {
  r.add<KvStage, Think>("think", "hold the channels of keys that the last queries weigh",
                        "think-2025");
}

}  // namespace mneme::kv::think
