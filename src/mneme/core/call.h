// Call: what one forward pass is told beside its input and its State. Fields may be added; signatures do not change.
#pragma once

#include "mneme/core/generator.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace mneme {

class Taps;

/// What a pass may do with the memory.
enum class Mode {
  infer,       ///< read and write, no gradients kept
  train,       ///< read and write, differentiable
  read_only,   ///< the State is read, nothing is added to it
  write_only,  ///< the State takes the input in; outputs need not be computed
};

/// In which number type products run.
enum class Compute {
  automatic,  ///< the fastest on this CPU within the quality bars
  f32,
  bf16,
  int16,  ///< plain weights as integers of 12 bits or in bf16, whichever this CPU multiplies faster; else as automatic
  int8,  ///< plain weights as integers of 8 bits where this CPU multiplies those fastest, else as int16; a layer whose
         ///< result depends much on rounding takes int16
  q16,  ///< quantized weights meet inputs of 16 bits as integers, for any number of rows; all else as f32
};

/// Whether attention, states and plain weights keep single precision.
[[nodiscard]] constexpr bool keeps_f32(Compute compute) noexcept {
  return compute == Compute::f32 || compute == Compute::q16;
}

/// Which earlier (or later) entries a position may see: a function of positions and segments, never an n x n table.
struct Pattern {
  bool causal = true;
  std::int64_t window =
      0;  ///< 0: unlimited; else visible if query position - key position < window
  bool by_segment =
      false;  ///< only entries of the same segment, or of those that it sees, are visible
  bool operator==(const Pattern&) const = default;
};

/// Counted work, for cost models: products count two FLOPs per multiply-add.
struct Cost {
  double flops = 0, bytes = 0;
};

struct Call {
  at::Tensor positions;  ///< [B,T] int64: the position of every token
  at::Tensor ids;        ///< [B,T] int64: which tokens they are, or undefined
  std::vector<std::int64_t>
      lengths;  ///< tokens of each row, at most T; empty: all T. Rows are padded at their end.
  at::Tensor segments;  ///< [B,T] int64 or undefined
  at::Tensor
      segment_sees;  ///< [B,S,S] bool: segment i sees entries of segment j; undefined: its own only
  Mode mode = Mode::infer;
  Compute compute = Compute::automatic;
  Pattern pattern;
  at::Tensor extra_keys,
      extra_values;         ///< [B,H,N,K], [B,H,N,V] visible to every query, or undefined
  at::Tensor cross_memory;  ///< [B,N,D] for cross attention, or undefined
  Generator* generator = nullptr;
  std::map<std::string, at::Tensor>* aux = nullptr;  ///< named losses
  const Taps* taps = nullptr;
  std::string at;  ///< where in the model this call is ("layers.10"), the prefix of tap names
  Cost* cost = nullptr;

  /// Tokens of row b in an input of T.
  [[nodiscard]] std::int64_t length(std::int64_t b, std::int64_t T) const {
    return lengths.empty() ? T : lengths[static_cast<std::size_t>(b)];
  }
};

}  // namespace mneme
