#include "mneme/kernels/scratch.h"

#include <vector>

namespace mneme::kernels {

float* scratch(std::int64_t floats) {
  struct alignas(64) Line {
    float numbers[16];
  };
  thread_local std::vector<Line> memory;
  const auto lines = static_cast<std::size_t>((floats + 15) / 16);
  if (memory.size() < lines) memory.resize(lines);
  return reinterpret_cast<float*>(memory.data());
}

}  // namespace mneme::kernels
