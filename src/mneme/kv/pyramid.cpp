// pyramid: early layers keep much, late ones little.
//
//   B_l = F + (each - F) (1 + slope (1 - 2 l / (L - 1))),   F = min(floor, each);   sum_l B_l = L each
//
// spec      pyramid(slope=0.95, floor=36)
// holds     as many entries in the mean over the layers as an equal share would, to the entry
// needs     nothing
// source    Cai et al. 2024, arXiv:2406.02069
// departs   what a layer cannot fill because the text is shorter is not given to others. A head never keeps less than the
//           evicting stage protects: where that is more than `floor`, late layers hold more than their share
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"

#include <algorithm>
#include <cmath>

namespace mneme::kv::pyramid {

class Pyramid final : public BudgetStage {
 public:
  struct Options {
    double slope = 0.95;
    std::int64_t floor = 36;
  };
  static void describe(Describe& d, Options& o) {
    d("slope", o.slope, within(0, 1), "how much more than its share the first layer keeps");
    d("floor", o.floor, at_least(0), "entries that each layer keeps first: those that always stay");
  }
  explicit Pyramid(const Options& o) : o_(o) {}

  [[nodiscard]] KvScope scope() const override { return KvScope::model; }

  [[nodiscard]] std::int64_t of_layer(std::int64_t layer, std::int64_t layers,
                                      std::int64_t each) const override {
    if (layers < 2) return each;
    // Layers at equal distances from the ends differ from `each` by as much, up and down: so the sum stays.
    const auto height =
        static_cast<double>(layers - 1 - 2 * layer) / static_cast<double>(layers - 1);
    const auto spread = static_cast<double>(each - std::min(o_.floor, each));
    return each + std::llround(spread * o_.slope * height);
  }

  [[nodiscard]] std::vector<std::int64_t> of_heads(const LayerView& layer,
                                                   const std::vector<at::Tensor>& /*scores*/,
                                                   std::int64_t each,
                                                   std::int64_t floor) const override {
    return std::vector<std::int64_t>(static_cast<std::size_t>(layer.heads), std::max(each, floor));
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Pyramid>("pyramid", "early layers keep much, late ones little", "pyramidkv-2024");
}

}  // namespace mneme::kv::pyramid
