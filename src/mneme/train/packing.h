// Packing: examples as the rows of one forward pass.
//
// Rows are as long as the longest example. Where shorter ones fit into one row together, they go
// there: their segments are made distinct, so that none sees another, and their positions stay, so
// that each is computed as if it were alone.
#pragma once

#include "mneme/models/model.h"
#include "mneme/train/example.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace mneme {

/// Examples laid out for a model, and what is to be learned from them.
struct PackedExamples {
  Batch batch;              ///< ids, positions, lengths, visibility; the learned tokens are chosen
  at::Tensor targets;       ///< [N] int64: what follows each of them
  at::Tensor weights;       ///< [N] float
  double weight = 0;        ///< sum of `weights`
  std::int64_t tokens = 0;  ///< of the examples, without padding
};

/// Throws Error(invalid) for an example that contradicts itself or is past `context` (0: any), and
/// for none. `share_rows`: let short examples share a row.
PackedExamples pack(const std::vector<const Example*>& examples, std::int64_t context,
                    bool share_rows = true);

}  // namespace mneme
