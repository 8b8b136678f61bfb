// Partial: softmax attention over some of the entries, in the form that merges exactly with attention over the rest.
//
//   o = sum_s exp(lse_s - lse) o_s,   lse = log sum_s exp(lse_s)
//
// Masks and biases are functions of positions, so attention over a segment needs nothing but the segment.
#pragma once

#include "mneme/core/call.h"

#include <ATen/core/Tensor.h>

#include <vector>

namespace mneme {

struct Partial {
  at::Tensor out;  ///< [B,H,T,V]; zero where nothing is visible
  at::Tensor lse;  ///< [B,H,T] f32; -infinity where nothing is visible
};

/// Attention over the union of the parts' entries.
Partial merge(const std::vector<Partial>& parts);

/// Entries that queries may look at. Every field is [B,H,N] or broadcasts to it.
struct Entries {
  at::Tensor keys, values;  ///< [B,H,N,K], [B,H,N,V]
  at::Tensor positions;     ///< [B,H,N] or [B,1,N] int64
  at::Tensor valid;         ///< bool, false for padding; undefined: all are entries
  at::Tensor log_mass;      ///< additive bias on the logits, undefined: none
  at::Tensor segments;      ///< [B,1,N] int64, undefined unless the pattern is by segment
};

/// The plain form, differentiable, any number type: q [B,G*H,T,K] (query head h looks at KV head h / G) at positions
/// [B,T]; `segments` [B,T] of the queries where the pattern asks for them, and which segments they see, as in Call.
Partial attend_plain(const at::Tensor& q, const at::Tensor& q_positions,
                     const at::Tensor& q_segments, const Entries& entries, const Pattern& pattern,
                     double scale, const at::Tensor& segment_sees = {});

/// The same without lse, which stays undefined, by libtorch's blockwise kernel: differentiable, and nothing of the size
/// T x N but one byte each is kept. Entries have no log mass, keys and values one width.
Partial attend_blockwise(const at::Tensor& q, const at::Tensor& q_positions,
                         const at::Tensor& q_segments, const Entries& entries,
                         const Pattern& pattern, double scale, const at::Tensor& segment_sees = {});

}  // namespace mneme
