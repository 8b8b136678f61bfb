// keep: of every head the entries with the highest scores, besides its first and its last ones.
//
//   kept = { t : t < sinks } + { the last `recent` } + { the best of the others, up to B }
//   B    = entries, or ceil(ratio N) of the N tokens seen so far
//
// spec      keep(ratio=0.25, entries=0, sinks=4, recent=32, when=chunk, every=16)
// holds     at most `entries` a head (mean over the heads that share them) after every chunk; `ratio` grows with the text
// needs     scores
// departs   while single tokens come, `every` of them are awaited: heads are then cut to entries - every + 1, so that the
//           bound holds at each step and most steps move nothing; when=end cuts once, when the prompt is complete
#include "mneme/core/registry.h"
#include "mneme/kv/stage.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace mneme::kv::keep {

class Keep final : public EvictStage {
 public:
  struct Options {
    double ratio = 0.25;
    std::int64_t entries = 0, sinks = 4, recent = 32, every = 16;
    std::string when = "chunk";
  };
  static void describe(Describe& d, Options& o) {
    d("ratio", o.ratio, within(0, 1), "share of the tokens seen that each head keeps");
    d("entries", o.entries, at_least(0), "entries that each head keeps; 0: as ratio says");
    d("sinks", o.sinks, within(0, 1 << 30), "first tokens that always stay");
    d("recent", o.recent, within(0, 1 << 30), "last entries that always stay");
    d("when", o.when, one_of({"chunk", "end"}), "after every chunk, or once at the prompt's end");
    d("every", o.every, at_least(1), "single tokens that come before heads are cut again");
  }
  explicit Keep(const Options& o) : o_(o) {}

  [[nodiscard]] bool wants_scores() const override { return true; }
  [[nodiscard]] KvPhase phase() const override {
    return o_.when == "end" ? KvPhase::prefill_end : KvPhase::every_chunk;
  }
  [[nodiscard]] std::optional<std::int64_t> max_entries() const override {
    if (o_.entries == 0 || phase() == KvPhase::prefill_end) return std::nullopt;
    return std::max(o_.entries, floor());
  }
  [[nodiscard]] std::int64_t floor() const override { return o_.sinks + o_.recent; }

  [[nodiscard]] std::optional<Due> due(const Moment& moment) const override {
    const bool end = phase() == KvPhase::prefill_end;
    if (end != moment.prompt_end) return std::nullopt;
    const auto slack = moment.chunk == 1 ? o_.every - 1 : 0;
    if (o_.entries > 0) {
      const auto limit = std::max(o_.entries, floor());
      return Due{std::max(limit - slack, floor()), limit};
    }
    const auto each = std::max(
        static_cast<std::int64_t>(std::ceil(o_.ratio * static_cast<double>(moment.seen))), floor());
    return Due{each, each + slack};
  }

  void keep(const HeadView& head, std::span<const float> scores, std::int64_t budget,
            std::vector<std::int64_t>& keep) const override {
    const auto N = head.entries();
    // Protected entries come before all others, also before those that score infinity; then scores, then what is newer.
    struct Rank {
      bool stays;
      float score;
    };
    std::vector<Rank> ranks(static_cast<std::size_t>(N));
    for (std::int64_t i = 0; i < N; ++i) {
      const auto at = static_cast<std::size_t>(i);
      ranks[at] = {head.token_indices[at] < o_.sinks || i >= N - o_.recent,
                   std::isnan(scores[at]) ? -std::numeric_limits<float>::infinity() : scores[at]};
    }
    std::vector<std::int64_t> order(ranks.size());
    std::iota(order.begin(), order.end(), 0);
    const auto first = order.begin(), cut = first + std::clamp<std::int64_t>(budget, 0, N);
    std::nth_element(first, cut, order.end(), [&](std::int64_t a, std::int64_t b) {
      const auto &x = ranks[static_cast<std::size_t>(a)], &y = ranks[static_cast<std::size_t>(b)];
      if (x.stays != y.stays) return x.stays;
      return x.score != y.score && !x.stays ? x.score > y.score : a > b;
    });
    // What is forced out goes even where the budget would hold it.
    const auto stays = std::partition(first, cut, [&](std::int64_t i) {
      return scores[static_cast<std::size_t>(i)] != -std::numeric_limits<float>::infinity() ||
             ranks[static_cast<std::size_t>(i)].stays;
    });
    std::sort(first, stays);
    keep.assign(first, stays);
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Keep>("keep", "the entries with the highest scores, besides first and last ones");
}

}  // namespace mneme::kv::keep
