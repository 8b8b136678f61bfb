// every_other: a KV stage that only the tests know; of the older tokens each second one stays.
//
//   kept = { t : t < sinks or t > last - recent or t even }      t: when the entry came, counted from 0
//
// spec      every_other(sinks=4, recent=32)
// holds     about half of the older entries; exact while N <= sinks + recent
// needs     nothing but the order of the entries
#include "mneme/core/registry.h"
#include "mneme/kv/stage.h"

namespace mneme::mechanisms::every_other {

class EveryOther final : public EvictStage {
 public:
  struct Options {
    std::int64_t sinks = 4, recent = 32;
  };
  static void describe(Describe& d, Options& o) {
    d("sinks", o.sinks, at_least(0), "first entries that always stay");
    d("recent", o.recent, at_least(1), "last entries that stay for now");
  }
  explicit EveryOther(const Options& o) : o_(o) {}

  [[nodiscard]] std::optional<Due> due(const Moment& moment) const override {
    if (moment.prompt_end) return std::nullopt;
    return Due{};
  }

  void keep(const HeadView& head, std::span<const float> /*scores*/, std::int64_t /*budget*/,
            std::vector<std::int64_t>& keep) const override {
    if (head.entries() == 0) return;
    const auto last = head.token_indices.back();
    for (std::int64_t i = 0; i < head.entries(); ++i) {
      const auto t = head.token_indices[static_cast<std::size_t>(i)];
      if (t < o_.sinks || t > last - o_.recent || t % 2 == 0) keep.push_back(i);
    }
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, EveryOther>("every_other", "each second of the older entries, for the tests");
}

}  // namespace mneme::mechanisms::every_other
