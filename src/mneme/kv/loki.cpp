// loki: a decoding step reads the entries whose products with its queries seem highest by a few coordinates of keys.
//
//   s_e  = sum_{c<rank} (q P)_c (k_e P)_c        P [K,K]: axes of the head's keys, along the first they vary most
//   read = { the ceil(keep n) entries with the highest s_e, of n in full pages } + { the newest page }
//
// spec      loki(rank=16, keep=0.25, space=post, per=query_head)
// holds     every entry, and `rank` numbers of each entry in full pages, in f32
// cost      a step reads keep n entries of a head and `rank` numbers of each of the others
// needs     numbers "key_pca.post" or "key_pca.pre" [L,H,K,K] of the model's heads; keys and queries
// source    Singhania et al. 2024, arXiv:2406.02542
// departs   keys stay as they are, beside their coordinates; per=kv_head makes one choice for all query heads of a KV
//           head, by the highest of their scores
#include "mneme/core/registry.h"
#include "mneme/kernels/page_view.h"
#include "mneme/kv/head_profile.h"
#include "mneme/kv/select_entries.h"
#include "mneme/kv/stage.h"

#include <ATen/ATen.h>

#include <fmt/format.h>

namespace mneme::kv::loki {

namespace {

/// out [n,r] = x [n,K] axes [K,r]
void project(const float* x, std::int64_t n, std::int64_t K, const float* axes, std::int64_t r,
             std::vector<float>& out) {
  out.assign(static_cast<std::size_t>(n * r), 0.f);
  for (std::int64_t e = 0; e < n; ++e) {
    auto* row = out.data() + e * r;
    for (std::int64_t i = 0; i < K; ++i) {
      const auto weight = x[e * K + i];
      for (std::int64_t c = 0; c < r; ++c) row[c] += weight * axes[i * r + c];
    }
  }
}

}  // namespace

class Loki final : public SelectStage {
 public:
  struct Options {
    std::int64_t rank = 16;
    double keep = 0.25;
    std::string space = "post", per = "query_head";
  };
  static void describe(Describe& d, Options& o) {
    d("rank", o.rank, at_least(1), "coordinates of a key that are compared; at most all are");
    d("keep", o.keep, within(0, 1), "share of the entries in full pages that is read");
    d("space", o.space, one_of({"post", "pre"}),
      "axes of keys as they are, or before they are turned to their positions");
    d("per", o.per, one_of({"query_head", "kv_head"}),
      "whether each query head chooses, or all of a KV head together");
  }
  explicit Loki(const Options& o) : o_(o) {}

  [[nodiscard]] Needs needs() const override {
    Needs out;
    out.head_profile = "key_pca";
    return out;
  }
  void calibrate(const HeadProfile& profile) override {
    const auto name = "key_pca." + o_.space;
    const auto& axes = profile.find(name);
    if (axes.dim() != 4 || axes.size(2) != axes.size(3))
      throw Error(Errc::mismatch,
                  fmt::format("kv: loki needs '{}' as [layers,heads,K,K], and the head profile has "
                              "{} dimensions: run `mneme calibrate key_pca` again",
                              name, axes.dim()));
    axes_ = axes.narrow(3, 0, std::min(o_.rank, axes.size(3))).to(at::kFloat).contiguous();
  }

  [[nodiscard]] std::int64_t summary_size(std::int64_t layer, std::int64_t K) const override {
    if (!axes_.defined()) return 0;
    if (layer >= axes_.size(0) || K != axes_.size(2))
      throw Error(Errc::mismatch,
                  fmt::format("kv: loki is calibrated for {} layers with keys of {} numbers, and "
                              "layer {} has keys of {}: run `mneme calibrate key_pca` again",
                              axes_.size(0), axes_.size(2), layer, K));
    return kernels::kPageEntries * axes_.size(3);
  }
  void summarize(std::int64_t layer, std::int64_t head, const float* keys, std::int64_t K,
                 float* summary) const override {
    const auto r = axes_.size(3);
    thread_local std::vector<float> coordinates;  // [64,r]
    project(keys, kernels::kPageEntries, K, of(layer, head), r, coordinates);
    transpose_page(coordinates.data(), r, summary);
  }
  void select(const Query& query, Selected& out) const override {
    const auto r = axes_.size(3);
    thread_local std::vector<float> coordinates;  // [G,r]
    project(query.numbers, query.group, query.width, of(query.layer, query.head), r, coordinates);
    select_entries(query, coordinates.data(), r, o_.keep, o_.per == "kv_head", out);
  }

 private:
  /// The axes of a head [K,r].
  [[nodiscard]] const float* of(std::int64_t layer, std::int64_t head) const {
    const auto H = axes_.size(1);
    if (head >= H)
      throw Error(Errc::mismatch,
                  fmt::format("kv: loki is calibrated for {} heads a layer, and this one has more: "
                              "run `mneme calibrate key_pca` again",
                              H));
    return axes_.const_data_ptr<float>() + (layer * H + head) * axes_.size(2) * axes_.size(3);
  }

  Options o_;
  at::Tensor axes_;  // [L,H,K,r]; undefined: not calibrated
};

void enrol(Registry& r) {
  r.add<KvStage, Loki>("loki", "decoding steps read the entries that few coordinates rank highest",
                       "loki-2024");
}

}  // namespace mneme::kv::loki
