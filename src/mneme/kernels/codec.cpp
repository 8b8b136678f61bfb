#include "mneme/kernels/codec.h"

#include "mneme/core/error.h"
#include "mneme/kernels/kernel_table.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/timing.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

namespace mneme::kernels {
namespace {

// Rows that one thread takes at a time start at a multiple of this, so that groups of channel4 stay whole.
constexpr std::int64_t kRows = 32;
constexpr std::int64_t kCodesPerThread = 32 * 1024;

// Where the sections of the encoded form of [T,d] begin.
template <class Byte, class Half>
struct Sections {
  Half *scale, *minimum;
  Byte* codes;
  std::int64_t groups_in_row, code_row_bytes;

  Sections(NumberCodec codec, Byte* start, std::int64_t T, std::int64_t d) {
    const std::int64_t groups = group_count(codec, T, d);
    scale = reinterpret_cast<Half*>(start);
    minimum = scale + groups;
    codes = start + 4 * groups;
    groups_in_row =
        codec == NumberCodec::channel4 ? d : (d + group_size(codec) - 1) / group_size(codec);
    code_row_bytes = code_bits(codec) == 8 ? d : (d + 1) / 2;
  }
};

void check_shape(std::int64_t T, std::int64_t d) {
  if (T < 0 || d < 0) {
    throw Error(Errc::invalid,
                "a matrix of shape [" + std::to_string(T) + "," + std::to_string(d) + "]");
  }
}

}  // namespace

void encode(NumberCodec codec, const float* x, std::int64_t T, std::int64_t d, std::uint8_t* to) {
  check_shape(T, d);
  if (T == 0 || d == 0) return;
  const KernelTable& kernels = table();
  const Sections<std::uint8_t, std::uint16_t> sections(codec, to, T, d);
  const std::int64_t steps = (T + kRows - 1) / kRows;
  const std::int64_t grain = std::max<std::int64_t>(1, kCodesPerThread / (kRows * d));
  std::atomic<bool> finite{true};
  const Timed timed;
  at::parallel_for(0, steps, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t step = begin; step < end; ++step) {
      const std::int64_t first = step * kRows, rows = std::min(kRows, T - first);
      std::uint8_t* codes = sections.codes + first * sections.code_row_bytes;
      bool good = true;
      if (codec == NumberCodec::channel4) {
        const std::int64_t group = step * sections.groups_in_row;
        good = kernels.encode_channels(x + first * d, rows, d, sections.scale + group,
                                       sections.minimum + group, codes);
      } else {
        for (std::int64_t r = 0; r < rows && good; ++r) {
          const std::int64_t group = (first + r) * sections.groups_in_row;
          good = kernels.encode_rows(x + (first + r) * d, d, group_size(codec), code_bits(codec),
                                     sections.scale + group, sections.minimum + group,
                                     codes + r * sections.code_row_bytes);
        }
      }
      if (!good) finite.store(false, std::memory_order_relaxed);
    }
  });
  if (!finite) throw Error(Errc::invalid, "a state to encode holds a number that is not finite");
}

void decode(NumberCodec codec, std::span<const DecodeTask> tasks) {
  // Steps of kRows rows, aligned to the groups of the matrix, of all tasks in sequence.
  std::vector<std::int64_t> ends;
  ends.reserve(tasks.size());
  std::int64_t steps = 0, numbers = 0;
  for (const DecodeTask& task : tasks) {
    check_shape(task.T, task.d);
    if (task.first < 0 || task.count < 0 || task.first > task.T ||
        task.count > task.T - task.first) {
      throw Error(Errc::invalid, "rows " + std::to_string(task.first) + " to " +
                                     std::to_string(task.first + task.count) +
                                     " of an encoded matrix of " + std::to_string(task.T));
    }
    if (task.out_stride < task.d && task.count > 1) {
      throw Error(Errc::invalid, "decoded rows of " + std::to_string(task.d) + " numbers, " +
                                     std::to_string(task.out_stride) + " apart");
    }
    if (task.count > 0 && task.d > 0) {
      steps += (task.first + task.count - 1) / kRows - task.first / kRows + 1;
      numbers += task.count * task.d;
    }
    ends.push_back(steps);
  }
  if (steps == 0) return;
  const KernelTable& kernels = table();
  const std::int64_t grain =
      std::max<std::int64_t>(1, kCodesPerThread / std::max<std::int64_t>(1, numbers / steps));
  const Timed timed;
  at::parallel_for(0, steps, grain, [&](std::int64_t begin, std::int64_t end) {
    auto at =
        static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin());
    for (std::int64_t step = begin; step < end; ++step) {
      while (step >= ends[at]) ++at;
      const DecodeTask& task = tasks[at];
      const std::int64_t group = task.first / kRows + step - (at == 0 ? 0 : ends[at - 1]);
      const std::int64_t first = std::max(task.first, group * kRows);
      const std::int64_t rows = std::min(task.first + task.count, (group + 1) * kRows) - first;
      const Sections<const std::uint8_t, const std::uint16_t> sections(codec, task.from, task.T,
                                                                       task.d);
      const std::uint8_t* codes = sections.codes + first * sections.code_row_bytes;
      const std::int64_t size = task.type == KvType::f32 ? 4 : 2;
      auto* out =
          static_cast<std::uint8_t*>(task.out) + (first - task.first) * task.out_stride * size;
      if (codec == NumberCodec::channel4) {
        const std::int64_t of = group * sections.groups_in_row;
        kernels.decode_channels(codes, rows, task.d, sections.scale + of, sections.minimum + of,
                                task.type, out, task.out_stride);
        continue;
      }
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t of = (first + r) * sections.groups_in_row;
        kernels.decode_row(codes + r * sections.code_row_bytes, task.d, group_size(codec),
                           code_bits(codec), sections.scale + of, sections.minimum + of, task.type,
                           out + r * task.out_stride * size);
      }
    }
  });
}

void decode(NumberCodec codec, const std::uint8_t* from, std::int64_t T, std::int64_t d,
            float* out) {
  const DecodeTask task{from, T, d, 0, T, out, d, KvType::f32};
  decode(codec, std::span(&task, 1));
}

void round_numbers(const float* x, std::int64_t n, KvType type, void* out) {
  if (n < 0) throw Error(Errc::invalid, "to round " + std::to_string(n) + " numbers");
  const Timed timed;
  table().round_numbers(x, n, type, out);
}

}  // namespace mneme::kernels
