// Weights in every storage format, made from random bytes.
#pragma once

#include "mneme/layers/stored_weight.h"
#include "mneme/weights/weight_tensor.h"

#include <ATen/ATen.h>

#include "tensor_check.h"
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace mneme::check {

inline void append_half(std::string& to, double x) {
  const auto half = at::scalar_tensor(x, at::kHalf);
  to.append(static_cast<const char*>(half.const_data_ptr()), 2);
}

/// A matrix [N,K] whose numbers are about 0.5 in size.
inline WeightTensor random_weight(WeightType type, std::int64_t N, std::int64_t K,
                                  std::uint64_t seed) {
  std::string bytes;
  Generator generator(seed);
  if (!is_quantized(type)) {
    const auto dtype = type == WeightType::f32   ? at::kFloat
                       : type == WeightType::f16 ? at::kHalf
                                                 : at::kBFloat16;
    const auto x = (0.5 * normal({N, K}, seed)).to(dtype);
    bytes.assign(static_cast<const char*>(x.const_data_ptr()), x.nbytes());
  } else {
    const double span = type == WeightType::q8_0 ? 127 : 8;
    for (std::int64_t block = 0; block < N * K / block_size(type); ++block) {
      append_half(bytes, (0.5 + generator.uniform()) / span);
      if (type == WeightType::q4_1) append_half(bytes, -1 + 0.1 * generator.uniform());
      const auto codes = type == WeightType::q8_0 ? 32 : 16;
      for (int i = 0; i < codes; ++i) bytes += static_cast<char>(generator.next());
    }
  }
  auto owner = std::make_shared<const std::string>(std::move(bytes));
  WeightTensor out;
  out.name = "random";
  out.type = type;
  out.shape = {N, K};
  out.data = reinterpret_cast<const std::byte*>(owner->data());
  out.bytes = static_cast<std::int64_t>(owner->size());
  out.owner = owner;
  return out;
}

}  // namespace mneme::check
