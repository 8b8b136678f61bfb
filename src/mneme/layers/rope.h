// Rotary positions: pairs of channels are turned by an angle that grows with the position, so that products of a query
// and a key depend on the distance alone.
//
//   (x_a, x_b) -> (x_a cos p f_i - x_b sin p f_i,  x_b cos p f_i + x_a sin p f_i),   f_i = theta^(-2i/d)
//
// source    Su et al. 2021, arXiv:2104.09864
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace mneme::kernels {
class Rope;
}

namespace mneme {

/// Which two channels turn together: i and i + d/2 (Hugging Face), or 2i and 2i + 1 (GGUF's llama layout).
enum class RopePairs { halves, adjacent };

class Rope {
 public:
  Rope(std::int64_t width, double theta, RopePairs pairs);

  /// x [B,H,T,d] turned to positions [B,T] int64 (a new tensor, differentiable); `back` turns the other way.
  [[nodiscard]] at::Tensor operator()(const at::Tensor& x, const at::Tensor& positions,
                                      bool back = false) const;
  /// Contiguous x [H,T,d] f32 turned in place by positions [T] (negative ones turn back); no gradient.
  void rotate(float* x, std::int64_t H, std::int64_t T, const std::int64_t* positions) const;
  /// The same where heads and times lie so many numbers apart.
  void rotate(float* x, std::int64_t H, std::int64_t T, std::int64_t head_stride,
              std::int64_t time_stride, const std::int64_t* positions) const;

  [[nodiscard]] std::int64_t width() const { return width_; }
  [[nodiscard]] double theta() const { return theta_; }
  [[nodiscard]] RopePairs pairs() const { return pairs_; }

 private:
  std::int64_t width_;
  double theta_;
  RopePairs pairs_;
  std::vector<double> frequencies_;
  std::shared_ptr<const kernels::Rope> kernel_;
};

}  // namespace mneme
