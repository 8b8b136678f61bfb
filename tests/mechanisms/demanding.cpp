// demanding: a KV stage that only the tests know; it says what it is but cannot be run as such, so that every plan with it
// must be refused.
//
// spec      demanding(role=score)
#include "mneme/core/registry.h"
#include "mneme/kv/stage.h"

#include <string>

namespace mneme::mechanisms::demanding {

class Demanding final : public KvStage {
 public:
  struct Options {
    std::string role = "score";
  };
  static void describe(Describe& d, Options& o) {
    d("role", o.role, one_of({"score", "place", "retrieve"}), "what it says it is");
  }
  explicit Demanding(const Options& o) : o_(o) {}

  [[nodiscard]] KvRole role() const override {
    if (o_.role == "place") return KvRole::place;
    return o_.role == "retrieve" ? KvRole::retrieve : KvRole::score;
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Demanding>("demanding", "wants what the cache cannot give, for the tests");
}

}  // namespace mneme::mechanisms::demanding
