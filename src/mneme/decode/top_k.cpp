// top_k: only the k most likely tokens stay.
//
//   l_i <- -inf where l_i < the k-th largest l           l: [V] logits
//
// spec      top_k(k=40)
// cost      O(V) and a heap of k
// source    Fan, Lewis & Dauphin 2018, arXiv:1805.04833
// departs   tokens that tie with the k-th stay too, as in Hugging Face; llama.cpp keeps exactly k
#include "mneme/core/registry.h"
#include "mneme/decode/logits_stage.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

namespace mneme::decode::top_k {

class TopK final : public LogitsStage {
 public:
  struct Options {
    std::int64_t k = 40;
  };
  static void describe(Describe& d, Options& o) {
    d("k", o.k, at_least(0), "tokens that stay; 0: all");
  }
  explicit TopK(const Options& o) : k_(static_cast<std::size_t>(o.k)) {}

  void apply(std::span<float> logits, std::span<const std::int32_t>) const override {
    if (k_ == 0 || k_ >= logits.size()) return;
    static thread_local std::vector<float> largest;  // kept, so that a token costs no allocation
    largest.resize(k_);
    std::partial_sort_copy(logits.begin(), logits.end(), largest.begin(), largest.end(),
                           std::greater<>());
    const float kth = largest.back();
    for (auto& logit : logits) {
      if (logit < kth) logit = -std::numeric_limits<float>::infinity();
    }
  }

 private:
  std::size_t k_;
};

void enrol(Registry& r) { r.add<LogitsStage, TopK>("top_k", "keeps the k most likely tokens"); }

}  // namespace mneme::decode::top_k
