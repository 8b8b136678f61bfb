// renumber: kept entries stand side by side, as if nothing had been between
// them.
//
//   p'_i = p_N - (N - i)       for the i-th of a head's N entries, p_N the
//   position of the newest
//
// Rotary attention knows distances only: with the newest entry where it is,
// this equals counting positions inside the cache, and a text may grow past the
// positions that the model knows.
//
// spec      window(sinks=4, size=1024) | renumber
// holds     keys that were moved a second time, in f32, as they were computed:
// of a window these are its sinks needs     a stage before it that drops
// entries source    Xiao et al. 2023, arXiv:2309.17453
#include "mneme/core/registry.h"
#include "mneme/kv/stage.h"

namespace mneme::kv::renumber {

class Renumber final : public PlaceStage {
 public:
  struct Options {};
  static void describe(Describe &, Options &) {}
  explicit Renumber(const Options &) {}

  [[nodiscard]] std::vector<std::int64_t> places(
      std::span<const std::int64_t> positions) const override {
    std::vector<std::int64_t> out(positions.size());
    for (std::size_t i = positions.size(); i-- > 0;)
      out[i] = i + 1 == positions.size() ? positions[i] : out[i + 1] - 1;
    return out;
  }
};

void enrol(Registry &r) {
  r.add<KvStage, Renumber>("renumber", "kept entries stand side by side", "streaming-llm-2023");
}

}  // namespace mneme::kv::renumber
