// demanding: a KV stage that only the tests know; it needs what the paged cache cannot give, so that every plan with it
// must be refused.
//
// spec      demanding(of=attention)
#include "mneme/core/registry.h"
#include "mneme/kv/stage.h"

#include <string>

namespace mneme::mechanisms::demanding {

class Demanding final : public KvStage {
 public:
  struct Options {
    std::string of = "attention";
  };
  static void describe(Describe& d, Options& o) {
    d("of", o.of,
      one_of({"attention", "queries", "unrotated_keys", "token_ids", "head_profile", "all_layers",
              "prompt_end", "retrieval"}),
      "what it needs");
  }
  explicit Demanding(const Options& o) : o_(o) {}

  [[nodiscard]] KvRole role() const override {
    return o_.of == "retrieval" ? KvRole::retrieve : KvRole::score;
  }
  [[nodiscard]] Needs needs() const override {
    Needs out;
    if (o_.of == "attention") out.attention = AttentionLevel::last_rows;
    if (o_.of == "queries") out.query_window = 16;
    out.unrotated_keys = o_.of == "unrotated_keys";
    out.token_ids = o_.of == "token_ids";
    out.head_profile = o_.of == "head_profile";
    return out;
  }
  [[nodiscard]] KvScope scope() const override {
    return o_.of == "all_layers" ? KvScope::model : KvScope::kv_head;
  }
  [[nodiscard]] KvPhase phase() const override {
    return o_.of == "prompt_end" ? KvPhase::prefill_end : KvPhase::every_chunk;
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Demanding>("demanding", "wants what the cache cannot give, for the tests");
}

}  // namespace mneme::mechanisms::demanding
