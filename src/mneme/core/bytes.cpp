#include "mneme/core/bytes.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

namespace mneme {

void ByteWriter::tensor(const at::Tensor& tensor) {
  value(static_cast<std::int8_t>(tensor.scalar_type()));
  value(static_cast<std::uint64_t>(tensor.dim()));
  for (auto size : tensor.sizes()) value(size);
  const auto n = static_cast<std::size_t>(tensor.numel()) * tensor.element_size();
  if (counts_only()) {
    written_ += static_cast<std::int64_t>(n);
    return;
  }
  const auto flat = tensor.detach().to(at::kCPU).contiguous();
  raw(flat.const_data_ptr(), n);
}

at::Tensor ByteReader::tensor() {
  const auto type = value<std::int8_t>();
  constexpr at::ScalarType kAllowed[] = {at::kFloat, at::kDouble, at::kHalf,  at::kBFloat16,
                                         at::kLong,  at::kInt,    at::kShort, at::kChar,
                                         at::kByte,  at::kBool};
  const auto dtype = static_cast<at::ScalarType>(type);
  if (std::find(std::begin(kAllowed), std::end(kAllowed), dtype) == std::end(kAllowed)) {
    throw Error(Errc::corrupt, "stored state holds a tensor of an unknown type: it is damaged");
  }
  const auto dims = count(8);
  if (dims > 8)
    throw Error(Errc::corrupt,
                "stored state holds a tensor of more than 8 dimensions: it is damaged");
  std::vector<std::int64_t> sizes;
  std::int64_t elements = 1,
               strides = 1;  // strides: the same product with 1 for 0, which ATen computes too
  for (std::uint64_t i = 0; i < dims; ++i) {
    sizes.push_back(value<std::int64_t>());
    if (sizes.back() < 0 || __builtin_mul_overflow(elements, sizes.back(), &elements) ||
        __builtin_mul_overflow(strides, std::max<std::int64_t>(sizes.back(), 1), &strides)) {
      throw Error(Errc::corrupt,
                  "stored state holds a tensor of an impossible size: it is damaged");
    }
  }
  std::int64_t n = 0;
  if (__builtin_mul_overflow(elements, static_cast<std::int64_t>(c10::elementSize(dtype)), &n)) {
    throw Error(Errc::corrupt, "stored state holds a tensor of an impossible size: it is damaged");
  }
  const auto contents = raw(static_cast<std::uint64_t>(n));
  if (dtype == at::kBool &&
      std::any_of(contents.begin(), contents.end(), [](char c) { return c != 0 && c != 1; })) {
    throw Error(Errc::corrupt,
                "stored state holds a truth value that is neither 0 nor 1: it is damaged");
  }
  auto out = at::empty(sizes, at::TensorOptions().dtype(dtype));
  if (n > 0) std::memcpy(out.mutable_data_ptr(), contents.data(), contents.size());
  return out;
}

}  // namespace mneme
