#include "mneme/core/taps.h"

#include "mneme/core/nearest.h"

namespace mneme {

bool Taps::armed(std::string_view prefix) const {
  // Every point of this room of names, so that a glob over points is recognised without running the layer.
  static constexpr const char* kPoints[] = {"resid.pre", "attn.q",     "attn.k",
                                            "attn.v",    "attn.heads", "attn.out",
                                            "mlp.act",   "resid.post", "state"};
  for (const auto& [glob, tap] : taps_) {
    for (const auto* point : kPoints) {
      if (glob_match(glob, std::string(prefix) + "." + point)) return true;
    }
  }
  return false;
}

at::Tensor Taps::visit(std::string_view name, at::Tensor value) const {
  for (const auto& [glob, tap] : taps_) {
    if (glob_match(glob, name)) value = tap(name, value);
  }
  return value;
}

}  // namespace mneme
