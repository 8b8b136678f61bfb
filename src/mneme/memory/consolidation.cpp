#include "mneme/memory/consolidation.h"

#include <tuple>

namespace mneme {
namespace {

class AskedForStays final : public ConsolidationPolicy {
 public:
  [[nodiscard]] bool less_useful(const StateSummary& a, const StateSummary& b) const override {
    // The base-2 logarithm of the counts: one question more does not outweigh having been asked for
    // just now.
    const auto key = [](const StateSummary& s) {
      return std::tuple(magnitude(s.asked) + magnitude(s.uses), s.asked_at, s.order);
    };
    return key(a) < key(b);
  }
  [[nodiscard]] bool may_shrink(const StateSummary& held, Admission incoming) const override {
    return incoming == Admission::for_question || held.asked == 0;
  }
  [[nodiscard]] bool may_drop(const StateSummary&, Admission incoming) const override {
    return incoming == Admission::for_question;
  }

 private:
  static int magnitude(std::int64_t count) {
    int bits = 0;
    for (; count > 0; count >>= 1) ++bits;
    return bits;
  }
};

}  // namespace

std::unique_ptr<ConsolidationPolicy> default_consolidation_policy() {
  return std::make_unique<AskedForStays>();
}

}  // namespace mneme
