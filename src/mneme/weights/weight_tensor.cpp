#include "mneme/weights/weight_tensor.h"

#include "mneme/core/error.h"

#include <ATen/ATen.h>

#include <cstring>
#include <utility>

namespace mneme {
namespace {

// The types that are numbers as they stand.
constexpr std::pair<WeightType, at::ScalarType> kPlain[] = {
    {WeightType::f32, at::kFloat}, {WeightType::f16, at::kHalf}, {WeightType::bf16, at::kBFloat16}};

at::ScalarType scalar_type(const WeightTensor& weight) {
  for (const auto& [stored, number] : kPlain) {
    if (stored == weight.type) return number;
  }
  throw Error(Errc::unsupported,
              "weight '" + weight.name + "' is quantized (" + std::string(name(weight.type)) +
                  ") and has no plain tensor view: dequantize it or use a quantized linear layer");
}

// Files give no alignment beyond their own, so numbers are read byte by byte.
std::uint16_t read_u16(const std::byte* at) {
  std::uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return bits;
}
float read_f16(const std::byte* at) { return c10::Half(read_u16(at), c10::Half::from_bits()); }
float read_bf16(const std::byte* at) {
  return c10::BFloat16(read_u16(at), c10::BFloat16::from_bits());
}
float read_f32(const std::byte* at) {
  float value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

constexpr std::int64_t kBlock = 32;

// q8_0: scale d (f16), 32 signed bytes q:  x_i = d q_i
void dequantize_q8_0(const std::byte* block, float* x) {
  const float d = read_f16(block);
  for (std::int64_t i = 0; i < kBlock; ++i) {
    x[i] = d * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
  }
}

// q4_0: scale d (f16), 16 bytes; byte i holds q_i below and q_{i+16} above:  x_i = d (q_i - 8)
void dequantize_q4_0(const std::byte* block, float* x) {
  const float d = read_f16(block);
  for (std::int64_t i = 0; i < kBlock / 2; ++i) {
    const int pair = std::to_integer<int>(block[2 + i]);
    x[i] = d * static_cast<float>((pair & 15) - 8);
    x[i + kBlock / 2] = d * static_cast<float>((pair >> 4) - 8);
  }
}

// q4_1: scale d and minimum m (f16), 16 bytes as in q4_0:  x_i = d q_i + m
void dequantize_q4_1(const std::byte* block, float* x) {
  const float d = read_f16(block), m = read_f16(block + 2);
  for (std::int64_t i = 0; i < kBlock / 2; ++i) {
    const int pair = std::to_integer<int>(block[4 + i]);
    x[i] = d * static_cast<float>(pair & 15) + m;
    x[i + kBlock / 2] = d * static_cast<float>(pair >> 4) + m;
  }
}

}  // namespace

std::int64_t WeightTensor::elements() const noexcept {
  std::int64_t n = 1;
  for (const auto size : shape) n *= size;
  return n;
}

std::optional<WeightType> weight_type(at::ScalarType type) noexcept {
  for (const auto& [stored, number] : kPlain) {
    if (number == type) return stored;
  }
  return std::nullopt;
}

at::Tensor to_tensor(const WeightTensor& weight) {
  const auto options = at::TensorOptions().dtype(scalar_type(weight));
  if (weight.elements() == 0) return at::empty(weight.shape, options);
  // at::from_blob has no const form; the mapping is copy-on-write.
  auto* data = const_cast<std::byte*>(weight.data);
  if (reinterpret_cast<std::uintptr_t>(data) % options.dtype().itemsize() != 0) {
    auto copy = at::empty(weight.shape, options);
    std::memcpy(copy.mutable_data_ptr(), data, static_cast<std::size_t>(weight.bytes));
    return copy;
  }
  return at::from_blob(data, weight.shape, [owner = weight.owner](void*) {}, options);
}

at::Tensor dequantize(const WeightTensor& weight) {
  auto out = at::empty(weight.shape, at::kFloat);
  float* x = out.mutable_data_ptr<float>();
  const std::int64_t n = weight.elements(), block = block_size(weight.type),
                     stride = block_bytes(weight.type);
  MNEME_ASSERT(n % block == 0 && weight.bytes == n / block * stride);
  const std::byte* at = weight.data;
  for (std::int64_t i = 0; i < n; i += block, at += stride) {
    switch (weight.type) {
      case WeightType::f32:
        x[i] = read_f32(at);
        break;
      case WeightType::f16:
        x[i] = read_f16(at);
        break;
      case WeightType::bf16:
        x[i] = read_bf16(at);
        break;
      case WeightType::q8_0:
        dequantize_q8_0(at, x + i);
        break;
      case WeightType::q4_0:
        dequantize_q4_0(at, x + i);
        break;
      case WeightType::q4_1:
        dequantize_q4_1(at, x + i);
        break;
    }
  }
  return out;
}

}  // namespace mneme
