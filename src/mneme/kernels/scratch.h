// Memory of a thread for what a kernel holds while it runs.
#pragma once

#include <cstdint>

namespace mneme::kernels {

/// `floats` numbers at the beginning of a cache line, since vectors that cross one take twice as long; the thread's own until
/// it asks again. Not written to.
[[nodiscard]] float* scratch(std::int64_t floats);

}  // namespace mneme::kernels
