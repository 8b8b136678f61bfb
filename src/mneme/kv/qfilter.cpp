// qfilter: a key's component along the direction that its head's queries share says how much attention it will get.
//
//   s_j = k_j . f     f [K]: the head's filter, measured once; turned keys
//
// spec      qfilter()
// holds     nothing
// cost      one product of K numbers an entry
// needs     the head profile "qfilter" [L,H,K]
// source    Godey et al. 2025, arXiv:2503.02812
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/kv/head_profile.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace mneme::kv::qfilter {

class QFilter final : public ScoreStage {
 public:
  [[nodiscard]] Needs needs() const override {
    Needs needs;
    needs.head_profile = "qfilter";
    return needs;
  }

  void calibrate(const HeadProfile& profile) override {
    const auto& found = profile.find("qfilter");
    if (found.dim() != 3) throw misfit(found.sizes(), "[layers, heads, width]");
    filters_ = found.to(at::kCPU, at::kFloat);
  }

  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h) {
      const auto keys = layer.keys(h);
      const std::vector<std::int64_t> wanted{layer.layers, layer.heads, keys.size(1)};
      if (filters_.sizes() != at::IntArrayRef(wanted))
        throw misfit(filters_.sizes(), fmt::format("[{}]", fmt::join(wanted, ", ")));
      out.push_back(at::mv(keys, filters_[layer.layer][h]));
    }
    return out;
  }

 private:
  static Error misfit(at::IntArrayRef seen, std::string_view wanted) {
    return {Errc::mismatch,
            fmt::format("qfilter: the head profile's numbers are [{}] where {} are wanted: measure "
                        "them on this model with `mneme calibrate qfilter`",
                        fmt::join(seen, ", "), wanted)};
  }

  at::Tensor filters_;  // [L,H,K]
};

void enrol(Registry& r) {
  r.add<KvStage, QFilter>("qfilter", "entries score along the direction of their head's queries",
                          "q-filters-2025");
}

}  // namespace mneme::kv::qfilter
