// vectorq: a cached answer is given again where it is wrong with probability delta at most, by a threshold of each entry's own.
//
//   tau(s) = 1 for fewer than 6 observations, (0, 0) and (1, 1) counted; else as response_cache.h says
//
// spec      vectorq(delta=0.02, capacity=10000)
// holds     see response_cache.h
// source    Schroeder et al. 2025, arXiv:2502.03771 (VectorQ, later vCache)
// departs   see response_cache.h
// card      papers/vectorq-2025.toml
#include "mneme/core/registry.h"
#include "mneme/memory/response_cache.h"

namespace mneme::memory::vectorq {

constexpr std::size_t kLeastObservations = 6;

class VectorQ final : public ReusePolicy {
 public:
  struct Options {
    double delta = 0.02;
    std::int64_t capacity = 10'000;
  };
  static void describe(Describe& d, Options& o) {
    d("delta", o.delta, within(0, 1),
      "wrong answers at most, as a part of all questions; 0: always asks the model");
    d("capacity", o.capacity, within(1, 1'000'000), "entries; the one unused longest gives way");
  }
  explicit VectorQ(const Options& o) : o_(o) {}

  double explore_probability(std::span<const CacheObservation> observations,
                             double similarity) const override {
    // What holds of every entry: nothing in common is wrong, the prompt itself is right.
    std::vector<CacheObservation> all{{0, false}, {1, true}};
    all.insert(all.end(), observations.begin(), observations.end());
    if (all.size() < kLeastObservations) return 1;
    const auto fit = fit_threshold(all);
    return fit ? mneme::explore_probability(*fit, similarity, o_.delta) : 1;
  }
  bool keeps_what_was_right() const override { return false; }
  std::int64_t capacity() const override { return o_.capacity; }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<ReusePolicy, VectorQ>("vectorq",
                              "a learned threshold for every entry, with a bound on wrong answers",
                              "vectorq-2025");
}

}  // namespace mneme::memory::vectorq
