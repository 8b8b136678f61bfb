#include "mneme/kv/kept_slice.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace mneme {
namespace {

std::size_t bitmap_bytes(std::int64_t tokens) { return static_cast<std::size_t>((tokens + 7) / 8); }

std::string_view take(std::string_view& in, std::size_t bytes) {
  if (in.size() < bytes)
    throw Error(Errc::corrupt, "stored keys and values end too early: they are damaged");
  const auto out = in.substr(0, bytes);
  in.remove_prefix(bytes);
  return out;
}

}  // namespace

void encode_kept(const Codec& codec, const KvSlice& slice, std::string& out) {
  for (std::size_t h = 0; h < slice.places.size(); ++h) {
    const auto& places = slice.places[h];
    std::string held(bitmap_bytes(slice.tokens()), '\0');
    for (const auto place : places)
      held[static_cast<std::size_t>(place / 8)] |= static_cast<char>(1 << (place % 8));
    out += held;
    if (places.empty()) continue;
    const auto n = static_cast<std::int64_t>(places.size()), head = static_cast<std::int64_t>(h);
    codec.encode({slice.keys.narrow(0, head, 1).narrow(1, 0, n).contiguous(),
                  slice.values.narrow(0, head, 1).narrow(1, 0, n).contiguous()},
                 out);
  }
}

KvSlice decode_kept(const Codec& codec, std::string_view& in, std::int64_t H, std::int64_t tokens,
                    std::int64_t K, std::int64_t V) {
  std::vector<KvSlice> heads;
  KvSlice out;
  out.tokens_of_places = tokens;
  std::int64_t most = 0;
  for (std::int64_t h = 0; h < H; ++h) {
    auto& places = out.places.emplace_back();
    const auto held = take(in, bitmap_bytes(tokens));
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(8 * held.size()); ++i) {
      if (((held[static_cast<std::size_t>(i / 8)] >> (i % 8)) & 1) == 0) continue;
      if (i >= tokens)
        throw Error(Errc::corrupt, "stored keys and values are of more tokens than they say");
      places.push_back(i);
    }
    const auto n = static_cast<std::int64_t>(places.size());
    most = std::max(most, n);
    auto& head = heads.emplace_back();
    if (n > 0)
      head = codec.decode(take(in, static_cast<std::size_t>(codec.bytes(1, n, K, V))), 1, n, K, V);
  }
  out.keys = at::zeros({H, most, K});
  out.values = at::zeros({H, most, V});
  for (std::int64_t h = 0; h < H; ++h) {
    const auto& head = heads[static_cast<std::size_t>(h)];
    if (!head.keys.defined()) continue;
    out.keys[h].narrow(0, 0, head.keys.size(1)).copy_(head.keys[0]);
    out.values[h].narrow(0, 0, head.values.size(1)).copy_(head.values[0]);
  }
  return out;
}

}  // namespace mneme
