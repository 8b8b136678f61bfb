// h2o: heavy hitters; an entry matters as much as it has been attended to since it came.
//
//   s_j = red_g sum_i a_gij     over all queries i since entry j came; red over the query heads g of its KV head
//
// spec      h2o(reduce=mean)
// holds     a sum per entry and query head
// cost      a second product of queries and keys for every chunk
// needs     column sums
// source    Zhang et al. 2023, arXiv:2306.14048
// departs   half of what is kept are the last tokens in the paper: here as many as the evicting stage protects
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"
#include "mneme/kv/query_group.h"

namespace mneme::kv::h2o {

class H2O final : public ScoreStage {
 public:
  struct Options {
    std::string reduce = "mean";
  };
  static void describe(Describe& d, Options& o) {
    d("reduce", o.reduce, a_reduction(), "what query heads that share an entry make of it");
  }
  explicit H2O(const Options& o) : o_(o) {}

  [[nodiscard]] Needs needs() const override {
    Needs needs;
    needs.attention = AttentionLevel::column_sums;
    return needs;
  }

  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    std::vector<at::Tensor> out;
    for (std::int64_t h = 0; h < layer.heads; ++h)
      out.push_back(over_group(layer.column_sums(h), o_.reduce));
    return out;
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, H2O>("h2o", "entries score what they have been attended to so far", "h2o-2023");
}

}  // namespace mneme::kv::h2o
