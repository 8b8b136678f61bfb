// window: keep the first `sinks` entries and the last `size`; forget the middle.
//
//   kept = { t : t < sinks or t >= N - size }       N: entries of the head now
//
// spec      window(sinks=4, size=1024)
// holds     at most sinks + size entries a head; exact while N <= sinks + size
// needs     nothing but positions
// source    Xiao et al. 2023, arXiv:2309.17453
// departs   the paper renumbers positions inside the cache: here entries keep their own
#include "mneme/core/registry.h"
#include "mneme/kv/stage.h"

#include <algorithm>

namespace mneme::kv::window {

class Window final : public EvictStage {
 public:
  struct Options {
    std::int64_t sinks = 4, size = 1024;
  };
  static void describe(Describe& d, Options& o) {
    d("sinks", o.sinks, within(0, 1 << 30), "first entries that always stay");
    d("size", o.size, within(1, 1 << 30), "last entries that stay");
  }
  explicit Window(const Options& o) : o_(o) {}

  [[nodiscard]] std::optional<std::int64_t> max_entries() const override {
    return o_.sinks + o_.size;
  }

  [[nodiscard]] std::optional<Due> due(const Moment& moment) const override {
    if (moment.prompt_end) return std::nullopt;
    return Due{o_.sinks + o_.size, o_.sinks + o_.size};
  }

  void keep(const HeadView& head, std::span<const float> /*scores*/, std::int64_t /*budget*/,
            std::vector<std::int64_t>& keep) const override {
    // Sinks are the first tokens of the text, not the first entries that happen to be left.
    const auto N = head.entries(), first_recent = std::max<std::int64_t>(0, N - o_.size);
    for (std::int64_t t = 0; t < N; ++t) {
      if (t >= first_recent || head.token_indices[static_cast<std::size_t>(t)] < o_.sinks)
        keep.push_back(t);
    }
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Window>("window", "attention sinks and a sliding window", "streaming-llm-2023");
}

}  // namespace mneme::kv::window
