// Random weights in every storage format.
#pragma once

#include "mneme/kernels/packed.h"
#include "mneme/weights/weight_type.h"

#include "half.h"
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

namespace mneme::kernels {

using Bytes = std::vector<std::uint8_t>;

/// Rows in a storage format, and the numbers that they stand for.
struct Weights {
  Bytes bytes;
  std::vector<double> numbers;
};

/// n random numbers; of a quantized type whole blocks.
inline Weights random_weights(WeightType type, std::int64_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(0.0, 1.0);
  const auto half = [&](double x) { return to_half(x); };
  Weights w;
  const auto put = [&](const auto& value) {
    const auto* from = reinterpret_cast<const std::uint8_t*>(&value);
    w.bytes.insert(w.bytes.end(), from, from + sizeof value);
  };
  if (!is_quantized(type)) {
    for (std::int64_t i = 0; i < n; ++i) {
      const auto x = static_cast<float>(normal(generator));
      if (type == WeightType::f32) {
        put(x);
        w.numbers.push_back(x);
      } else if (type == WeightType::f16) {
        put(half(x));
        w.numbers.push_back(from_half(half(x)));
      } else {
        put(to_bf16(x));
        w.numbers.push_back(from_bf16(to_bf16(x)));
      }
    }
    return w;
  }
  for (std::int64_t b = 0; b < n / 32; ++b) {
    const std::uint16_t d = half(0.05 * normal(generator)), m = half(normal(generator));
    put(d);
    if (type == WeightType::q4_1) put(m);
    std::uint8_t codes[32];
    for (auto& code : codes) code = static_cast<std::uint8_t>(generator());
    if (type == WeightType::q8_0) {
      put(codes);
      for (std::uint8_t code : codes)
        w.numbers.push_back(from_half(d) * static_cast<std::int8_t>(code));
      continue;
    }
    for (int i = 0; i < 16; ++i) {
      const auto byte = static_cast<std::uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
      put(byte);
    }
    for (std::uint8_t code : codes) {
      const int q = code & 15;
      w.numbers.push_back(type == WeightType::q4_0 ? from_half(d) * (q - 8)
                                                   : from_half(d) * q + from_half(m));
    }
  }
  return w;
}

/// Rows of K numbers as products with 8-bit rows want them; null for plain types.
inline std::unique_ptr<PackedMatrix> packed(WeightType type, const Weights& w, std::int64_t K) {
  if (!is_quantized(type)) return nullptr;
  return std::make_unique<PackedMatrix>(type, w.bytes.data(),
                                        static_cast<std::int64_t>(w.numbers.size()) / K, K);
}

}  // namespace mneme::kernels
