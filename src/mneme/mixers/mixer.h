// Mixer: a layer through which tokens see each other, and so a memory: one forward over one State, the same result for
// any chunking of the input.
#pragma once

#include "mneme/core/call.h"
#include "mneme/core/params.h"
#include "mneme/core/state.h"
#include "mneme/layers/feed_forward.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace mneme {

class Mixer {
 public:
  static constexpr std::string_view kKind = "mixer";
  static constexpr std::string_view kKindHelp = "layers through which tokens see each other";
  using Make = std::unique_ptr<Mixer>(const Shape&, Params&);

  virtual ~Mixer() = default;
  /// x [B,T,D] -> [B,T,D]; any cut of T gives the same outputs and the same State. A step is T = 1.
  [[nodiscard]] virtual at::Tensor forward(const at::Tensor& x, State& state, Call& call) const = 0;
  /// The State before the first token, for B sequences; `where` gives device and number type.
  [[nodiscard]] virtual State start(std::int64_t B, const at::TensorOptions& where) const = 0;
  /// Bytes that one sequence's State takes after T tokens, as `State::bytes` counts the numbers in it.
  [[nodiscard]] virtual std::int64_t state_bytes(std::int64_t T) const = 0;

  /// Outputs [B,T,D] for a tree of proposed tokens x [B,T,D] where token t follows parent[t] (-1: the State's last);
  /// the State stays as it was. The default runs each token's path from a fork.
  [[nodiscard]] virtual at::Tensor verify(const at::Tensor& x,
                                          const std::vector<std::int64_t>& parent,
                                          const State& state, Call& call) const;
  /// Takes the tokens on `path` (indices into the tree that was verified) into the State.
  virtual void commit(const at::Tensor& x, const std::vector<std::int64_t>& path, State& state,
                      Call& call) const;
};

}  // namespace mneme
