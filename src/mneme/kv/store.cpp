// store: keep full pages and stored states in a number type, whatever attention computed them in.
//
//   f32, f16, bf16: numbers rounded one by one; q8, q4: the small integers of `quantize(bits=8)` and `quantize(bits=4)`
//
// spec      store(type=f16)
// holds     4 bytes a number (f32), 2 (f16, bf16), about 1.06 (q8) or 0.63 (q4)
// needs     nothing; the newest, not yet full page of a head stays as computed
// source    none: a row of its own in a comparison of what numbers cost
#include "mneme/core/registry.h"
#include "mneme/kv/stage.h"

namespace mneme::kv::store {

class Store final : public EncodeStage {
 public:
  struct Options {
    std::string type = "f16";
  };
  static void describe(Describe& d, Options& o) {
    d("type", o.type, one_of({"f32", "f16", "bf16", "q8", "q4"}), "number type of entries");
  }
  explicit Store(Options o) : o_(std::move(o)) {}
  [[nodiscard]] std::string codec() const override { return o_.type; }

 private:
  Options o_;
};

void enrol(Registry& r) { r.add<KvStage, Store>("store", "keep entries in a number type"); }

}  // namespace mneme::kv::store
