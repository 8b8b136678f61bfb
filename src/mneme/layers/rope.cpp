#include "mneme/layers/rope.h"

#include "mneme/core/error.h"
#include "mneme/kernels/attend.h"
#include "mneme/layers/saved_object.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <map>
#include <mutex>
#include <utility>

namespace mneme {
namespace {

/// x [B,H,T,d] f32 turned to positions [B,T] by the kernel. A turn's gradient is turned back.
class Turned : public torch::autograd::Function<Turned> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& positions,
                            const std::shared_ptr<const kernels::Rope>& kernel) {
    context->saved_data["kernel"] = saved(kernel);
    context->saved_data["positions"] = positions;
    auto y = x.clone(at::MemoryFormat::Contiguous);
    const auto H = x.size(1), T = x.size(2), d = x.size(3);
    for (std::int64_t b = 0; b < x.size(0); ++b)
      kernel->rotate(y.mutable_data_ptr<float>() + b * H * T * d, H, T, T * d, d,
                     positions.const_data_ptr<std::int64_t>() + b * T);
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    return {apply(gradients[0], -context->saved_data["positions"].toTensor(),
                  saved_object<kernels::Rope>(context->saved_data["kernel"])),
            at::Tensor(), at::Tensor()};
  }
};

/// One kernel for all layers that turn alike: its table of angles takes four bytes for each position and number of a head.
std::shared_ptr<const kernels::Rope> shared_kernel(const std::vector<double>& frequencies,
                                                   RopePairs pairs) {
  static std::mutex mutex;
  static std::map<std::pair<std::vector<double>, RopePairs>, std::weak_ptr<const kernels::Rope>>
      kernels;
  const std::lock_guard lock(mutex);
  auto& known = kernels[{frequencies, pairs}];
  auto kernel = known.lock();
  if (!kernel) {
    kernel = std::make_shared<kernels::Rope>(frequencies, pairs == RopePairs::halves
                                                              ? kernels::PairLayout::halves
                                                              : kernels::PairLayout::adjacent);
    known = kernel;
  }
  return kernel;
}

}  // namespace

Rope::Rope(std::int64_t width, double theta, RopePairs pairs)
    : width_(width), theta_(theta), pairs_(pairs) {
  if (width <= 0 || width % 2 != 0)
    throw Error(Errc::invalid, "rotary positions want an even head width");
  for (std::int64_t i = 0; i < width / 2; ++i)
    frequencies_.push_back(
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(width)));
  kernel_ = shared_kernel(frequencies_, pairs);
}

at::Tensor Rope::operator()(const at::Tensor& x, const at::Tensor& positions, bool back) const {
  // ATen's own cosines are left out where they can be: the first that a process takes may differ in the last digit from the
  // next, as its two threads set up MKL's at once, and no run could be repeated exactly.
  if (x.is_cpu() && x.scalar_type() == at::kFloat && positions.is_cpu()) {
    const auto p = positions.to(at::kLong).expand({x.size(0), x.size(2)}).contiguous();
    return Turned::apply(x, back ? -p : p, kernel_);
  }
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
  rotate(x, H, T, T * width_, width_, positions);
}

void Rope::rotate(float* x, std::int64_t H, std::int64_t T, std::int64_t head_stride,
                  std::int64_t time_stride, const std::int64_t* positions) const {
  kernel_->rotate(x, H, T, head_stride, time_stride, positions);
}

}  // namespace mneme
