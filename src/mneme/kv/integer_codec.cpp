// q8, q4: keys and values as small integers with a f16 scale and a f16 minimum a group (kernels/codec.h).
//
//   q8  groups of 64 numbers of one token, keys and values: 1.06 bytes a number
//   q4  keys in groups of 32 tokens of one channel, values in groups of 32 numbers of one token: 0.63 bytes a number
//
//   layout: the keys of each head as one matrix [n,K], then the values of each head [n,V]
//
// source    Liu et al. 2024, arXiv:2402.02750 (keys per channel, values per token)
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/kernels/codec.h"
#include "mneme/kv/codec.h"

#include <ATen/ATen.h>

namespace mneme::kv::integer_codec {

template <kernels::NumberCodec for_keys, kernels::NumberCodec for_values>
class Integer final : public Codec {
 public:
  [[nodiscard]] std::int64_t bytes(std::int64_t H, std::int64_t n, std::int64_t K,
                                   std::int64_t V) const override {
    return H * (kernels::encoded_bytes(for_keys, n, K) + kernels::encoded_bytes(for_values, n, V));
  }

  void encode(const KvSlice& slice, std::string& out) const override {
    write(for_keys, slice.keys, out);
    write(for_values, slice.values, out);
  }

  [[nodiscard]] KvSlice decode(std::string_view in, std::int64_t H, std::int64_t n, std::int64_t K,
                               std::int64_t V) const override {
    check_length(in, bytes(H, n, K, V));
    KvSlice out{at::empty({H, n, K}), at::empty({H, n, V})};
    const auto* from = reinterpret_cast<const std::uint8_t*>(in.data());
    from = read(for_keys, from, out.keys);
    read(for_values, from, out.values);
    return out;
  }

  [[nodiscard]] std::optional<kernels::PageView> view(std::string_view in, std::int64_t n,
                                                      std::int64_t K, std::int64_t V,
                                                      std::int32_t first,
                                                      std::int32_t entries) const override {
    check_length(in, bytes(1, n, K, V));
    kernels::PageView page{};
    page.k = in.data();
    page.v = in.data() + kernels::encoded_bytes(for_keys, n, K);
    page.entries = entries;
    page.k_codec = for_keys;
    page.v_codec = for_values;
    page.encoded = static_cast<std::int32_t>(n);
    page.first = first;
    return page;
  }

 private:
  static void write(kernels::NumberCodec codec, const at::Tensor& x, std::string& out) {
    const auto flat = x.contiguous();
    const auto H = flat.size(0), n = flat.size(1), d = flat.size(2),
               each = kernels::encoded_bytes(codec, n, d);
    const auto first = out.size();
    out.resize(first + static_cast<std::size_t>(H * each));
    for (std::int64_t h = 0; h < H; ++h) {
      kernels::encode(codec, flat.const_data_ptr<float>() + h * n * d, n, d,
                      reinterpret_cast<std::uint8_t*>(out.data() + first) + h * each);
    }
  }

  static const std::uint8_t* read(kernels::NumberCodec codec, const std::uint8_t* from,
                                  at::Tensor& x) {
    const auto H = x.size(0), n = x.size(1), d = x.size(2),
               each = kernels::encoded_bytes(codec, n, d);
    std::vector<kernels::DecodeTask> tasks;
    for (std::int64_t h = 0; h < H; ++h)
      tasks.push_back({from + h * each, n, d, 0, n, x.mutable_data_ptr<float>() + h * n * d, d,
                       kernels::KvType::f32});
    kernels::decode(codec, tasks);
    return from + H * each;
  }
};

void enrol(Registry& r) {
  using enum kernels::NumberCodec;
  r.add<Codec, Integer<group8, group8>>("q8", "8-bit integers, groups of 64 along a token",
                                        "kivi-2024");
  r.add<Codec, Integer<channel4, group4>>(
      "q4", "4-bit integers, keys per channel, values per token", "kivi-2024");
}

}  // namespace mneme::kv::integer_codec
