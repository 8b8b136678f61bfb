// fixed: a cached answer is given again wherever similarity reaches one threshold, the same for all; nothing bounds how
// often it is wrong.
//
//   tau(s) = 0 for s >= threshold, else 1
//
// spec      fixed(threshold=0.95, capacity=10000)
// holds     see response_cache.h; nothing is observed, and every question that the model was asked becomes an entry
// source    the caches that Schroeder et al. 2025, arXiv:2502.03771, compare with
#include "mneme/core/registry.h"
#include "mneme/memory/response_cache.h"

namespace mneme::memory::fixed {

class Fixed final : public ReusePolicy {
 public:
  struct Options {
    double threshold = 0.95;
    std::int64_t capacity = 10'000;
  };
  static void describe(Describe& d, Options& o) {
    d("threshold", o.threshold, within(0, 1), "least cosine of two questions with one answer");
    d("capacity", o.capacity, within(1, 1'000'000), "entries; the one unused longest gives way");
  }
  explicit Fixed(const Options& o) : o_(o) {}

  double explore_probability(std::span<const CacheObservation>, double similarity) const override {
    return similarity >= o_.threshold ? 0 : 1;
  }
  bool keeps_what_was_right() const override { return true; }
  std::int64_t capacity() const override { return o_.capacity; }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<ReusePolicy, Fixed>("fixed", "one threshold of similarity for all, without a bound");
}

}  // namespace mneme::memory::fixed
