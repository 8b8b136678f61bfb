// f32, f16, bf16: keys and values as they are, or rounded to 16 bits.
//
//   layout: keys [H,n,K], then values [H,n,V]
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/kv/codec.h"

#include <ATen/ATen.h>

#include <cstring>

namespace mneme::kv::plain_codec {

template <at::ScalarType type>
class Plain final : public Codec {
 public:
  [[nodiscard]] std::int64_t bytes(std::int64_t H, std::int64_t n, std::int64_t K,
                                   std::int64_t V) const override {
    return H * n * (K + V) * static_cast<std::int64_t>(c10::elementSize(type));
  }
  void encode(const KvSlice& slice, std::string& out) const override {
    for (const auto& x : {slice.keys, slice.values}) {
      // Numbers beyond the range of half precision would read back as infinities, which spread to every output.
      const auto flat = (type == at::kHalf ? x.clamp(-65504, 65504) : x).to(type).contiguous();
      out.append(static_cast<const char*>(flat.const_data_ptr()), flat.nbytes());
    }
  }
  [[nodiscard]] KvSlice decode(std::string_view in, std::int64_t H, std::int64_t n, std::int64_t K,
                               std::int64_t V) const override {
    check_length(in, bytes(H, n, K, V));
    const auto take = [&](std::int64_t width) {
      auto x = at::empty({H, n, width}, at::TensorOptions().dtype(type));
      std::memcpy(x.mutable_data_ptr(), in.data(), x.nbytes());
      in.remove_prefix(x.nbytes());
      return x.to(at::kFloat);
    };
    auto keys = take(K);
    return {std::move(keys), take(V)};
  }
  [[nodiscard]] std::optional<kernels::PageView> view(std::string_view in, std::int64_t n,
                                                      std::int64_t K, std::int64_t V,
                                                      std::int32_t first,
                                                      std::int32_t entries) const override {
    check_length(in, bytes(1, n, K, V));
    const auto size = static_cast<std::int64_t>(c10::elementSize(type));
    kernels::PageView page{};
    page.k = in.data() + first * K * size;
    page.v = in.data() + (n * K + first * V) * size;
    page.entries = entries;
    page.type = type == at::kHalf       ? kernels::KvType::f16
                : type == at::kBFloat16 ? kernels::KvType::bf16
                                        : kernels::KvType::f32;
    return page;
  }
};

void enrol(Registry& r) {
  r.add<Codec, Plain<at::kFloat>>("f32", "as computed, 4 bytes a number");
  r.add<Codec, Plain<at::kHalf>>("f16", "half precision, 2 bytes a number");
  r.add<Codec, Plain<at::kBFloat16>>("bf16", "the upper half of f32, 2 bytes a number");
}

}  // namespace mneme::kv::plain_codec
