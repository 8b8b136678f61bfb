#include "mneme/kernels/norm.h"

#include "mneme/core/error.h"
#include "mneme/kernels/kernel_table.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/timing.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <string>

namespace mneme::kernels {
namespace {

// row(numbers before it) for every row, on all threads.
template <class Row>
void by_rows(std::int64_t rows, std::int64_t width, const Row& row) {
  if (rows < 0 || width < 0) {
    throw Error(Errc::invalid, "rows of shape [" + std::to_string(rows) + "," +
                                   std::to_string(width) + "] to normalize");
  }
  constexpr std::int64_t kNumbersPerThread = 16 * 1024;
  const auto grain =
      std::max<std::int64_t>(1, kNumbersPerThread / std::max<std::int64_t>(1, width));
  const Timed timed;
  at::parallel_for(0, rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) row(r * width);
  });
}

}  // namespace

void rms_norm(float* x, const float* addend, const float* weight, float eps, std::int64_t rows,
              std::int64_t width, float* out) {
  const KernelTable& kernels = table();
  by_rows(rows, width, [&](std::int64_t at) {
    kernels.rms_norm(x + at, addend == nullptr ? nullptr : addend + at, weight, eps, width,
                     out + at);
  });
}

void layer_norm(const float* x, const float* addend, const float* weight, const float* bias,
                float eps, std::int64_t rows, std::int64_t width, float* out) {
  const KernelTable& kernels = table();
  by_rows(rows, width, [&](std::int64_t at) {
    kernels.layer_norm(x + at, addend == nullptr ? nullptr : addend + at, weight, bias, eps, width,
                       out + at);
  });
}

}  // namespace mneme::kernels
