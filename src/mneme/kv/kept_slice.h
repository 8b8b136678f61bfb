// Kept slices as bytes: entries of heads that each hold some of a slice's tokens, in any codec.
#pragma once

#include "mneme/kv/codec.h"

#include <cstdint>
#include <string>
#include <string_view>

namespace mneme {

/// Appends to `out`, for every head, which of the slice's tokens it holds, a bit each, and the codec's bytes of these. The
/// slice has places.
void encode_kept(const Codec& codec, const KvSlice& slice, std::string& out);

/// Reads back what encode_kept wrote of `tokens` tokens and takes it off the front of `in`. Throws Error(corrupt) where
/// that is not what stands there.
[[nodiscard]] KvSlice decode_kept(const Codec& codec, std::string_view& in, std::int64_t H,
                                  std::int64_t tokens, std::int64_t K, std::int64_t V);

}  // namespace mneme
