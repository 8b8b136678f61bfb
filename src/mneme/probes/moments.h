// Moments: what is needed of many vectors to know the directions they lie in, without keeping them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace mneme {

/// Sums of vectors and of their outer products, one set a head, in double precision: neither the order of the vectors nor
/// how they are divided into calls matters beyond its rounding.
class Moments {
 public:
  Moments(std::int64_t heads, std::int64_t width);
  Moments(Moments&&) = default;
  Moments& operator=(Moments&&) = default;
  Moments(const Moments&) = delete;  // copies would share their sums
  Moments& operator=(const Moments&) = delete;

  /// Takes in vectors [H,n,d].
  void add(const at::Tensor& vectors);

  [[nodiscard]] std::int64_t count() const { return count_; }  ///< vectors a head
  [[nodiscard]] at::Tensor mean() const;                       ///< [H,d] f64
  [[nodiscard]] at::Tensor second() const;      ///< [H,d,d] f64: mean of x x', not centred
  [[nodiscard]] at::Tensor covariance() const;  ///< [H,d,d] f64

 private:
  std::int64_t count_ = 0;
  at::Tensor sum_, outer_;
};

/// Empty ones, each with sums of its own.
std::vector<Moments> moments_of_layers(std::int64_t layers, std::int64_t heads, std::int64_t width);

/// The direction that queries share.
struct QueryFilters {
  at::Tensor filters;  ///< [H,d] f64: a unit vector for every KV head
  at::Tensor
      share;  ///< [Hq] f64: of the queries' squares that lie along their own head's direction
  at::Tensor positive;  ///< [Hq] f64: mean projection of the queries on their KV head's filter
};

/// From the moments of Hq query heads, Hq / H of which read each KV head: the first right singular vector of each head's
/// queries, turned so that their mean projection is positive, and the mean of these over the group.
QueryFilters query_filters(const Moments& queries, std::int64_t kv_heads);

/// Axes of falling variance.
struct PrincipalAxes {
  at::Tensor axes;      ///< [H,d,d] f64, orthogonal; column c is the c-th axis: vectors x -> x P
  at::Tensor variance;  ///< [H,d] f64, falling: along each axis, of all of it
};

PrincipalAxes principal_axes(const Moments& vectors);

/// How many of the first axes hold that share of the variance [..,d] (falling, of sum 1): [..] int64.
at::Tensor rank_at(const at::Tensor& variance, double share);

}  // namespace mneme
