// Objective: one term of a training loss. A config names a list of them, each with its weight.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <string_view>

namespace mneme {

/// What a pass gave, for the tokens that are learned.
struct ObjectiveInput {
  at::Tensor logits;                      ///< [N,V] float, at the tokens that are learned
  at::Tensor targets;                     ///< [N] int64: the tokens that follow them
  at::Tensor weights;                     ///< [N] float, as the examples give them
  at::Tensor hidden;                      ///< [B,T,D] after the last layer
  std::map<std::string, at::Tensor> aux;  ///< named losses of the layers
};

class Objective {
 public:
  static constexpr std::string_view kKind = "objective";
  static constexpr std::string_view kKindHelp = "terms of a training loss";
  using Make = std::unique_ptr<Objective>();

  virtual ~Objective() = default;
  /// The term, a differentiable scalar. Throws Error(invalid) where the pass lacks what it is about.
  [[nodiscard]] virtual at::Tensor loss(const ObjectiveInput& input) const = 0;
};

}  // namespace mneme
