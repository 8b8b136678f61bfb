// threshold: entries stay whose score is high enough, few or many.
//
//   kept = { t : t < sinks } + { the last `recent` } + { j : s_j >= least }
//
// spec      threshold(least=0, sinks=0, recent=1, when=chunk, every=16)
// holds     whatever the scores say; no bound
// needs     scores; they say by infinities what is kept or dropped by rule, as in `duo | threshold`
// departs   while single tokens come, scores are asked for after `every` of them; when=end: once, at the end of the prompt
#include "mneme/core/registry.h"
#include "mneme/kv/stage.h"

namespace mneme::kv::threshold {

class Threshold final : public EvictStage {
 public:
  struct Options {
    double least = 0;
    std::int64_t sinks = 0, recent = 1, every = 16;
    std::string when = "chunk";
  };
  static void describe(Describe& d, Options& o) {
    d("least", o.least, "score of an entry that stays");
    d("sinks", o.sinks, at_least(0), "first tokens that always stay");
    d("recent", o.recent, at_least(1), "last entries that always stay");
    d("when", o.when, one_of({"chunk", "end"}), "after every chunk, or once at the prompt's end");
    d("every", o.every, at_least(1), "single tokens that come before entries are judged again");
  }
  explicit Threshold(const Options& o) : o_(o) {}

  [[nodiscard]] bool wants_scores() const override { return true; }
  [[nodiscard]] KvPhase phase() const override {
    return o_.when == "end" ? KvPhase::prefill_end : KvPhase::every_chunk;
  }
  [[nodiscard]] std::int64_t floor() const override { return o_.sinks + o_.recent; }

  [[nodiscard]] std::optional<Due> due(const Moment& moment) const override {
    if ((phase() == KvPhase::prefill_end) != moment.prompt_end) return std::nullopt;
    if (moment.chunk == 1 && moment.seen % o_.every != 0) return std::nullopt;
    return Due{floor(), floor()};
  }

  void keep(const HeadView& head, std::span<const float> scores, std::int64_t /*budget*/,
            std::vector<std::int64_t>& keep) const override {
    const auto N = head.entries();
    for (std::int64_t i = 0; i < N; ++i) {
      const auto at = static_cast<std::size_t>(i);
      if (head.token_indices[at] < o_.sinks || i >= N - o_.recent ||
          static_cast<double>(scores[at]) >= o_.least)
        keep.push_back(i);
    }
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Threshold>("threshold", "the entries whose score is high enough");
}

}  // namespace mneme::kv::threshold
