#include "mneme/layers/rope.h"

#include "mneme/core/error.h"
#include "mneme/kernels/attend.h"

#include <ATen/ATen.h>

#include <cmath>

namespace mneme {

Rope::Rope(std::int64_t width, double theta, RopePairs pairs)
    : width_(width), theta_(theta), pairs_(pairs) {
  if (width <= 0 || width % 2 != 0)
    throw Error(Errc::invalid, "rotary positions want an even head width");
  for (std::int64_t i = 0; i < width / 2; ++i)
    frequencies_.push_back(
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(width)));
  kernel_ = std::make_shared<kernels::Rope>(frequencies_, pairs == RopePairs::halves
                                                              ? kernels::PairLayout::halves
                                                              : kernels::PairLayout::adjacent);
}

at::Tensor Rope::operator()(const at::Tensor& x, const at::Tensor& positions, bool back) const {
  auto angle = positions.to(at::kDouble).unsqueeze(-1) *
               at::tensor(frequencies_, at::kDouble).to(positions.device());  // [B,T,d/2]
  const auto cos = angle.cos().to(x.scalar_type()).unsqueeze(1);
  const auto sin = (back ? -angle.sin() : angle.sin()).to(x.scalar_type()).unsqueeze(1);
  if (pairs_ == RopePairs::halves) {
    const auto half = x.chunk(2, -1);
    return at::cat({half[0] * cos - half[1] * sin, half[1] * cos + half[0] * sin}, -1);
  }
  const auto pair = x.unflatten(-1, {width_ / 2, 2});
  const auto a = pair.select(-1, 0), b = pair.select(-1, 1);
  return at::stack({a * cos - b * sin, b * cos + a * sin}, -1).flatten(-2);
}

void Rope::rotate(float* x, std::int64_t H, std::int64_t T, const std::int64_t* positions) const {
  kernel_->rotate(x, H, T, T * width_, width_, positions);
}

}  // namespace mneme
