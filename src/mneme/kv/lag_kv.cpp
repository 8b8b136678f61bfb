// lag_kv: an entry whose channels spread unevenly in the range that the next partition of the text spans stays.
//
//   partitions of `lag` tokens behind the first `sinks`; n: entries of one; m, M: least and greatest of the next one's
//   d_n(x) = std_c (x_nc - m_c) / (M_c - m_c)                   over channels c
//   s_n    = (softmax_n d_n(k) + softmax_n d_n(v)) / 2          over the partition; ranked: #{ s_i < s_n } / #{ i }
//   s_n    = 1                                                  sinks, the last whole partition and what follows it
//
// spec      lag_kv(lag=128, sinks=4, ranked=true)
// holds     nothing
// needs     keys, as they are stored, and values
// source    Liang et al. 2025, arXiv:2504.04704
// departs   partitions are of tokens: of those that were cut before, the entries that are left are judged anew, where the
//           paper's cut each partition once; the next one is the next that the head holds anything of. A channel in which
//           the next partition does not vary counts as 0
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

namespace mneme::kv::lag_kv {

class LagKv final : public ScoreStage {
 public:
  struct Options {
    std::int64_t lag = 128, sinks = 4;
    bool ranked = true;
  };
  static void describe(Describe& d, Options& o) {
    d("lag", o.lag, at_least(1), "tokens of a partition");
    d("sinks", o.sinks, within(0, 1 << 30), "first tokens, before the partitions");
    d("ranked", o.ranked,
      "partitions are cut alike; or else their entries compete with all others");
  }
  explicit LagKv(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h) {
      const auto head = layer.head(h);
      const auto parts = partitions(head, layer.moment.seen);
      auto scores = at::ones({head.entries()});
      if (parts.size() > 1) {
        const auto keys = layer.keys(h), values = layer.values(h);
        for (std::size_t p = 0; p + 1 < parts.size(); ++p) {
          const auto information = [&](const at::Tensor& x) {
            return lag_relative(of(x, parts[p]), of(x, parts[p + 1])).softmax(0);
          };
          const auto both = (information(keys) + information(values)) / 2;
          of(scores, parts[p]).copy_(o_.ranked ? ranks(both) : both);
        }
      }
      out.push_back(std::move(scores));
    }
    return out;
  }

 private:
  struct Partition {
    std::int64_t begin = 0, entries = 0;
  };

  /// Where those lie whose last token has come, in the order of the text; of some the head may hold nothing.
  [[nodiscard]] std::vector<Partition> partitions(const HeadView& head, std::int64_t seen) const {
    const auto whole = (seen - o_.sinks) / o_.lag;
    std::vector<Partition> out;
    std::int64_t last = -1;
    for (std::int64_t i = 0; i < head.entries(); ++i) {
      const auto token = head.token_indices[static_cast<std::size_t>(i)] - o_.sinks;
      if (token < 0) continue;
      const auto partition = token / o_.lag;
      if (partition >= whole) break;
      if (partition != last) out.push_back({i, 0});
      last = partition;
      ++out.back().entries;
    }
    return out;
  }

  static at::Tensor of(const at::Tensor& x, const Partition& part) {
    return x.narrow(0, part.begin, part.entries);
  }

  /// How unevenly entries [n,d] lie in the ranges of others [m,d]: [n].
  static at::Tensor lag_relative(const at::Tensor& x, const at::Tensor& next) {
    const auto least = next.amin(0), range = next.amax(0) - least;
    const auto relative = at::where(range > 0, (x - least) / range, at::zeros({}));
    return relative.std(at::IntArrayRef{-1}, /*unbiased=*/true);
  }

  /// The place of each score in the order of all [n], as a part of n.
  static at::Tensor ranks(const at::Tensor& scores) {
    return scores.argsort(/*stable=*/true, -1, false).argsort(-1, false).to(at::kFloat) /
           static_cast<double>(scores.numel());
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, LagKv>("lag_kv", "entries that lie unevenly in the range of what follows them");
}

}  // namespace mneme::kv::lag_kv
