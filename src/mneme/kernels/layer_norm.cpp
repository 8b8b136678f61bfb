#include "mneme/kernels/layer_norm.h"

#include "mneme/core/error.h"
#include "mneme/kernels/kernel_table.h"
#include "mneme/kernels/level.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <string>

namespace mneme::kernels {

void layer_norm(const float* x, const float* addend, const float* weight, const float* bias,
                float eps, std::int64_t rows, std::int64_t width, float* out) {
  if (rows < 0 || width < 0) {
    throw Error(Errc::invalid, "rows of shape [" + std::to_string(rows) + "," +
                                   std::to_string(width) + "] to normalize");
  }
  const KernelTable& kernels = table();
  constexpr std::int64_t kNumbersPerThread = 16 * 1024;
  const auto grain =
      std::max<std::int64_t>(1, kNumbersPerThread / std::max<std::int64_t>(1, width));
  at::parallel_for(0, rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      kernels.layer_norm(x + r * width, addend == nullptr ? nullptr : addend + r * width, weight,
                         bias, eps, width, out + r * width);
    }
  });
}

}  // namespace mneme::kernels
