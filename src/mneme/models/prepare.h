// What every model does before and after its layers: checking a batch, giving tokens their positions, moving on.
#pragma once

#include "mneme/models/model.h"

#include <cstdint>

namespace mneme {

/// A checked batch as the call that its layers get.
struct Prepared {
  Call call;
  std::int64_t B = 0, T = 0;
};

/// Whether texts may grow past the model's context: in every layer what is read stands nearer than it reaches.
bool any_length(const State& state, std::int64_t context);

/// Throws Error(invalid) on impossible shapes, Error(full) past the context unless any length may be had.
Prepared prepare(const Batch& batch, const State& state, const Model& model);

/// Moves every row's position behind its last token.
void advance(State& state, const Prepared& prepared);

/// [B,T,D] -> [B,D]: the last token of each row.
at::Tensor last_of_rows(const at::Tensor& hidden, const Call& call);

}  // namespace mneme
