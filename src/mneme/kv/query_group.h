// How the numbers of the query heads that share a KV head become one: entries belong to the KV head.
#pragma once

#include "mneme/core/describe.h"

#include <ATen/core/Tensor.h>

#include <string_view>

namespace mneme {

/// What an option that says so may be.
inline Check a_reduction() { return one_of({"mean", "max", "sum"}); }

/// Numbers [G,N] of the query heads of a group -> [N].
inline at::Tensor over_group(const at::Tensor& of_heads, std::string_view how) {
  return how == "mean" ? of_heads.mean(0) : how == "max" ? of_heads.amax(0) : of_heads.sum(0);
}

}  // namespace mneme
