// quantize: keep full pages and stored states as small integers.
//
//   8 bits: groups of 64 numbers of one token; 4 bits: keys in groups of 32 tokens of one channel, values in groups of 32
//   numbers of one token; a f16 scale and a f16 minimum a group
//
// spec      quantize(bits=8)
// holds     about 1.06 bytes (8 bits) or 0.63 bytes (4 bits) a number
// needs     nothing; the newest, not yet full page of a head stays as computed
// source    Liu et al. 2024, arXiv:2402.02750 (keys per channel, values per token)
// departs   group sizes and 16-bit minima as measured for this project's default model
#include "mneme/core/registry.h"
#include "mneme/kv/stage.h"

namespace mneme::kv::quantize {

class Quantize final : public EncodeStage {
 public:
  struct Options {
    std::int64_t bits = 8;
  };
  static void describe(Describe& d, Options& o) {
    d("bits", o.bits,
      Check{[](const Field& f) {
              const auto x = **std::get_if<std::int64_t*>(&f);
              return x == 4 || x == 8;
            },
            "4 or 8"},
      "bits a number");
  }
  explicit Quantize(const Options& o) : o_(o) {}
  [[nodiscard]] std::string codec() const override { return o_.bits == 8 ? "q8" : "q4"; }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Quantize>("quantize", "keep entries as 8 or 4 bit integers", "kivi-2024");
}

}  // namespace mneme::kv::quantize
