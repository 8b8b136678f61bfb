// Half precision by its definition, as an oracle.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace mneme::kernels {

inline double from_half(std::uint16_t h) {
  const int exponent = (h >> 10) & 31, fraction = h & 1023;
  const double sign = (h & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return fraction != 0 ? std::nan("") : sign * INFINITY;
  return sign *
         (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

/// The nearest half, ties to even.
inline std::uint16_t to_half(double x) {
  const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double size = std::fabs(x);
  if (std::isnan(x)) return 0x7e00;
  if (size >= 65520) return static_cast<std::uint16_t>(sign | 0x7c00);
  int exponent = size == 0 ? -14 : std::max(-14, std::ilogb(size));
  const double units =
      std::nearbyint(std::ldexp(size, 10 - exponent));  // 1024..2048, or less below 2^-14
  auto whole = static_cast<int>(units);
  if (whole == 2048) whole = 1024, ++exponent;
  if (whole < 1024) return static_cast<std::uint16_t>(sign | whole);
  return static_cast<std::uint16_t>(sign | ((exponent + 15) << 10) | (whole - 1024));
}

inline float from_bf16(std::uint16_t b) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(b) << 16);
}

/// The nearest bf16, ties to even, of a number that is not a NaN.
inline std::uint16_t to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t below = bits & 0xffff, upper = bits >> 16;
  return static_cast<std::uint16_t>(
      upper + (below > 0x8000 || (below == 0x8000 && (upper & 1) != 0) ? 1 : 0));
}

}  // namespace mneme::kernels
