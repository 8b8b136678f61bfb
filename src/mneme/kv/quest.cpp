// quest: a decoding step reads only the pages whose keys may have the highest products with its queries.
//
//   min_max   u(q,p) = sum_i max(q_i a_pi, q_i b_pi) >= q'k      a_p, b_p [K]: least and greatest k_i in page p
//   ball      u(q,p) = q'c_p + |q| r_p >= q'k                    c_p [K]: mean of page p's keys, r_p the farthest from it
//   read      the `pages` full pages with the greatest max_g u(q_g,p), g: query heads of the KV head; the newest page,
//             and those that are not full
//
// spec      quest(pages=16, bound=min_max, skip_layers=2)
// holds     every entry; beside each full page 2 K numbers (min_max) or K + 1 (ball) in f32
// cost      a step reads 64 (pages + 1) entries of a head and the summaries of all its pages
// needs     keys and queries
// source    Tang et al. 2024, arXiv:2406.10774
// departs   one choice for all query heads of a KV head; pages of 64 entries; `ball` is not the paper's
#include "mneme/core/registry.h"
#include "mneme/kernels/page_view.h"
#include "mneme/kv/stage.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace mneme::kv::quest {

namespace {

constexpr std::int64_t kPage = kernels::kPageEntries;

/// a'b; the sums stand side by side, so that the compiler may add vectors.
float product(const float* a, const float* b, std::int64_t n) {
  constexpr std::int64_t kTogether = 16;
  float sums[kTogether] = {};
  std::int64_t i = 0;
  for (; i + kTogether <= n; i += kTogether) {
    for (std::int64_t j = 0; j < kTogether; ++j) sums[j] += a[i + j] * b[i + j];
  }
  float out = 0;
  for (; i < n; ++i) out += a[i] * b[i];
  for (std::int64_t j = 0; j < kTogether; ++j) out += sums[j];
  return out;
}

}  // namespace

class Quest final : public SelectStage {
 public:
  struct Options {
    std::int64_t pages = 16, skip_layers = 2;
    std::string bound = "min_max";
  };
  static void describe(Describe& d, Options& o) {
    d("pages", o.pages, at_least(1), "full pages of 64 entries that a step reads of each head");
    d("bound", o.bound, one_of({"min_max", "ball"}),
      "what is remembered of a page's keys: least and greatest numbers, or mean and distance");
    d("skip_layers", o.skip_layers, at_least(0), "first layers, which read everything");
  }
  explicit Quest(const Options& o) : o_(o), ball_(o.bound == "ball") {}

  [[nodiscard]] KvGranularity granularity() const override { return KvGranularity::block; }

  [[nodiscard]] std::int64_t summary_size(std::int64_t layer, std::int64_t K) const override {
    if (layer < o_.skip_layers) return 0;
    return ball_ ? K + 1 : 2 * K;
  }

  void summarize(std::int64_t /*layer*/, std::int64_t /*head*/, const float* keys, std::int64_t K,
                 float* summary) const override {
    if (ball_) {
      std::fill_n(summary, K + 1, 0.f);
      for (std::int64_t e = 0; e < kPage; ++e) {
        for (std::int64_t i = 0; i < K; ++i)
          summary[i] += keys[e * K + i] / static_cast<float>(kPage);
      }
      for (std::int64_t e = 0; e < kPage; ++e) {
        float squares = 0;
        for (std::int64_t i = 0; i < K; ++i) {
          const auto apart = keys[e * K + i] - summary[i];
          squares += apart * apart;
        }
        summary[K] = std::max(summary[K], std::sqrt(squares));
      }
      return;
    }
    auto *greatest = summary, *least = summary + K;
    std::copy_n(keys, K, greatest);
    std::copy_n(keys, K, least);
    for (std::int64_t e = 1; e < kPage; ++e) {
      const auto* key = keys + e * K;
      for (std::int64_t i = 0; i < K; ++i) {
        greatest[i] = key[i] > greatest[i] ? key[i] : greatest[i];
        least[i] = key[i] < least[i] ? key[i] : least[i];
      }
    }
  }

  void select(const Query& query, Selected& out) const override {
    const auto n = query.summaries.size();
    out.entries.clear();
    out.pages.resize(n);
    std::iota(out.pages.begin(), out.pages.end(), 0);
    const auto most = static_cast<std::size_t>(o_.pages);
    if (n <= most) return;
    // Both bounds are products of a page's numbers with numbers of the query: positive q_i meet the greatest k_i and
    // negative ones the least; the distance meets |q|.
    const auto size = summary_size(query.layer, query.width);
    thread_local std::vector<float> weights, bounds;
    weights.resize(static_cast<std::size_t>(query.group * size));
    for (std::int64_t g = 0; g < query.group; ++g) {
      const auto* q = query.numbers + g * query.width;
      auto* w = weights.data() + g * size;
      if (ball_) {
        std::copy_n(q, query.width, w);
        w[query.width] = std::sqrt(product(q, q, query.width));
        continue;
      }
      for (std::int64_t i = 0; i < query.width; ++i) {
        w[i] = std::max(q[i], 0.f);
        w[query.width + i] = std::min(q[i], 0.f);
      }
    }
    bounds.assign(n, -std::numeric_limits<float>::infinity());
    for (std::size_t p = 0; p < n; ++p) {
      for (std::int64_t g = 0; g < query.group; ++g)
        bounds[p] =
            std::max(bounds[p], product(weights.data() + g * size, query.summaries[p], size));
    }
    const auto first = out.pages.begin(), cut = first + o_.pages;
    std::nth_element(first, cut, out.pages.end(), [](std::int32_t a, std::int32_t b) {
      const auto x = bounds[static_cast<std::size_t>(a)], y = bounds[static_cast<std::size_t>(b)];
      return x != y ? x > y : a > b;
    });
    out.pages.resize(most);
    std::sort(out.pages.begin(), out.pages.end());
  }

 private:
  Options o_;
  bool ball_;
};

void enrol(Registry& r) {
  r.add<KvStage, Quest>("quest", "decoding steps read the pages that may matter most",
                        "quest-2024");
}

}  // namespace mneme::kv::quest
