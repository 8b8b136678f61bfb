#include "mneme/kernels/attend_segments.h"

#include "mneme/core/error.h"
#include "mneme/kernels/kernel_table.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/scratch.h"
#include "mneme/kernels/timing.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

namespace mneme::kernels {
namespace {

// Multiply-adds below which another thread costs more than it brings.
constexpr std::int64_t kSegmentWorkPerThread = 256 * 1024;
// Rows of a head below which it is not cut: every cut brings keys and values into their order again.
constexpr std::int64_t kLeastRows = 48;

// Rows [begin,end) of one head.
struct HeadRows {
  const SegmentTask* segment;
  std::int64_t head, begin, end;
};

}  // namespace

void attend_segments(std::span<const SegmentTask> segments, const SegmentShape& shape, float scale,
                     Products products) {
  if (shape.heads < 0 || shape.kv_heads <= 0 || shape.d <= 0 || shape.heads % shape.kv_heads != 0) {
    throw Error(Errc::invalid, "attention of " + std::to_string(shape.heads) + " heads, " +
                                   std::to_string(shape.kv_heads) + " of keys, of width " +
                                   std::to_string(shape.d));
  }
  const KernelTable& kernels = table();
  const auto attend = products == Products::bf16 && kernels.attend_segment_bf16 != nullptr
                          ? kernels.attend_segment_bf16
                          : kernels.attend_segment;
  std::int64_t work = 0, heads = 0, longest = 0;
  for (const SegmentTask& segment : segments) {
    if (segment.T < 0)
      throw Error(Errc::invalid, "a segment of " + std::to_string(segment.T) + " rows");
    work += 2 * shape.heads * segment.T * segment.T * shape.d;
    heads += segment.T == 0 ? 0 : shape.heads;
    longest = std::max(longest, segment.T);
  }
  const std::int64_t threads = std::clamp<std::int64_t>(
      work / kSegmentWorkPerThread, 1, std::max<std::int64_t>(1, at::get_num_threads()));
  // Where there are few heads for the threads, their rows are cut.
  const std::int64_t cuts = threads == 1 || heads >= 4 * threads ? 1 : 4;
  std::vector<HeadRows> units;
  for (const SegmentTask& segment : segments) {
    const std::int64_t rows = std::max(kLeastRows, (segment.T + cuts - 1) / cuts);
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      for (std::int64_t t = 0; t < segment.T; t += cuts == 1 ? segment.T : rows)
        units.push_back({&segment, h, t, cuts == 1 ? segment.T : std::min(segment.T, t + rows)});
    }
  }
  const std::int64_t group = shape.heads == 0 ? 1 : shape.heads / shape.kv_heads;
  const auto count = static_cast<std::int64_t>(units.size());
  std::atomic<std::int64_t> next{0};
  const Timed timed;
  at::parallel_for(0, threads, 1, [&](std::int64_t, std::int64_t) {
    float* memory = scratch(kernels.segment_scratch(longest, shape.d));
    for (auto i = next++; i < count; i = next++) {
      const HeadRows& unit = units[static_cast<std::size_t>(i)];
      const SegmentTask& s = *unit.segment;
      const std::int64_t h = unit.head, g = h / group;
      attend({s.q + h * shape.q_head_stride, s.k + g * shape.k_head_stride,
              s.v + g * shape.v_head_stride, s.out + h * shape.out_head_stride, shape.q_time_stride,
              shape.k_time_stride, shape.v_time_stride, shape.out_time_stride, s.T, unit.begin,
              unit.end, shape.d, scale},
             memory);
    }
  });
}

}  // namespace mneme::kernels
