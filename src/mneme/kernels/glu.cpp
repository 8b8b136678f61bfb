#include "mneme/kernels/glu.h"

#include "mneme/core/error.h"
#include "mneme/kernels/kernel_table.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/timing.h"

#include <ATen/Parallel.h>

#include <string>

namespace mneme::kernels {

void silu_multiply(const float* gate, const float* up, float* out, std::int64_t n) {
  if (n < 0) throw Error(Errc::invalid, "a gate of " + std::to_string(n) + " numbers");
  const KernelTable& kernels = table();
  const Timed timed;
  at::parallel_for(0, n, 16 * 1024, [&](std::int64_t begin, std::int64_t end) {
    kernels.silu_multiply(gate + begin, up + begin, out + begin, end - begin);
  });
}

}  // namespace mneme::kernels
