// Softmax attention within segments: every row of a segment looks at all rows of the same one, before and after it.
#pragma once

#include "mneme/kernels/attend.h"

#include <cstdint>
#include <span>

namespace mneme::kernels {

/// One segment of T rows. The numbers of a head of a row are contiguous; heads and rows are so far apart as the strides say.
struct SegmentTask {
  const float* q;  ///< [heads,T,d]
  const float* k;  ///< [kv_heads,T,d]
  const float* v;  ///< [kv_heads,T,d]
  float* out;      ///< [heads,T,d], not overlapping the others
  std::int64_t T;
};

/// What all segments have in common.
struct SegmentShape {
  std::int64_t heads, kv_heads, d;  ///< query head h looks at KV head h / (heads / kv_heads)
  std::int64_t q_head_stride = 0, q_time_stride = 0, k_head_stride = 0, k_time_stride = 0,
               v_head_stride = 0, v_time_stride = 0, out_head_stride = 0, out_time_stride = 0;
};

/// out_t = sum_e w_te v_e,  w_t = softmax over all e of the segment of scale q_t'k_e. Work is shared evenly among threads.
/// Throws Error (invalid) where a shape does not fit.
void attend_segments(std::span<const SegmentTask> segments, const SegmentShape& shape, float scale,
                     Products products = Products::f32);

}  // namespace mneme::kernels
