// FeedForward: what a block does to each token apart from the others.
#pragma once

#include "mneme/core/call.h"
#include "mneme/core/params.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string_view>

namespace mneme {

/// Sizes that a layer is built for.
struct Shape {
  std::int64_t model = 0;
  std::int64_t layer = 0;  ///< its place in the model, from 0
};

class FeedForward {
 public:
  static constexpr std::string_view kKind = "feed_forward";
  static constexpr std::string_view kKindHelp = "per-token layers: MLP, gated units, memory layers";
  using Make = std::unique_ptr<FeedForward>(const Shape&, Params&);

  virtual ~FeedForward() = default;
  /// x [B,T,D] -> [B,T,D]; losses go to call.aux, the hidden activation passes the tap "mlp.act".
  [[nodiscard]] virtual at::Tensor forward(const at::Tensor& x, Call& call) const = 0;
};

}  // namespace mneme
