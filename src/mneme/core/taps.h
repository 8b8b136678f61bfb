// Taps: named points inside a model (resid.pre, attn.q|k|v|out, mlp.act, resid.post, state), read or changed by glob.
#pragma once

#include "mneme/core/call.h"

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme {

/// Sees the tensor at a point; returns it, or what shall stand in its place.
using Tap = std::function<at::Tensor(std::string_view name, const at::Tensor& value)>;

class Taps {
 public:
  /// Arms a tap on every point whose full name ("layers.10.mlp.act") matches the glob; taps run in the order of arming.
  void add(std::string glob, Tap tap) { taps_.emplace_back(std::move(glob), std::move(tap)); }
  /// True if some tap may match a point under `prefix` ("layers.10"): such a layer takes the plain path.
  [[nodiscard]] bool armed(std::string_view prefix) const;
  [[nodiscard]] at::Tensor visit(std::string_view name, at::Tensor value) const;

 private:
  std::vector<std::pair<std::string, Tap>> taps_;
};

/// True if the layer that this call is in has an armed tap: one branch when none is.
inline bool tapped(const Call& call) { return call.taps != nullptr && call.taps->armed(call.at); }

/// The value at a point of this call, seen or replaced by the taps there.
inline at::Tensor tap(const Call& call, std::string_view point, at::Tensor value) {
  return call.taps == nullptr
             ? std::move(value)
             : call.taps->visit(call.at + "." + std::string(point), std::move(value));
}

}  // namespace mneme
