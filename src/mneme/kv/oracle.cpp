// oracle: a decoding step reads exactly the entries with the highest products: what no selection of as many can exceed
// by scores alone.
//
//   read_g = { the ceil(keep n) entries e with the highest q_g'k_e, of n in full pages } + { the newest page }
//
// spec      oracle(keep=0.25)
// holds     every entry, and the keys of full pages a second time, in f32
// cost      a step reads all keys: a measure of other stages, no way to be fast
// needs     keys and queries
#include "mneme/core/registry.h"
#include "mneme/kernels/page_view.h"
#include "mneme/kv/select_entries.h"
#include "mneme/kv/stage.h"

namespace mneme::kv::oracle {

class Oracle final : public SelectStage {
 public:
  struct Options {
    double keep = 0.25;
  };
  static void describe(Describe& d, Options& o) {
    d("keep", o.keep, within(0, 1),
      "share of the entries in full pages that each query head reads");
  }
  explicit Oracle(const Options& o) : o_(o) {}

  [[nodiscard]] std::int64_t summary_size(std::int64_t /*layer*/, std::int64_t K) const override {
    return kernels::kPageEntries * K;
  }
  void summarize(std::int64_t /*layer*/, std::int64_t /*head*/, const float* keys, std::int64_t K,
                 float* summary) const override {
    transpose_page(keys, K, summary);
  }
  void select(const Query& query, Selected& out) const override {
    select_entries(query, query.numbers, query.width, o_.keep, false, out);
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Oracle>("oracle", "decoding steps read the entries with the highest scores");
}

}  // namespace mneme::kv::oracle
