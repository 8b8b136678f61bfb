// Codecs of numbers: stored states with 8 or 4 bits a number, in groups that share a scale and a minimum.
#pragma once

#include "mneme/kernels/page_view.h"

#include <cstdint>
#include <span>

namespace mneme::kernels {

/// How a matrix [T,d] is written. In every form a group of numbers has, in half precision,
///   scale = (max - min) / (2^bits - 1) and min;  code = round((x - min) / scale) in [0, 2^bits - 1];  x ~ code scale + min
/// with the rounded scale and min. A group whose scale rounds to zero has codes zero. Numbers beyond the range of half
/// precision are clamped to it. The encoded bytes and the decoded numbers are the same at every level.
///
/// Layout, without padding, little endian, G = groups of a row (or T/32 rounded up for channel4):
///   scale   f16 [T,G], for channel4 [G,d]
///   min     f16, the same shape
///   codes   u8 [T,d], or for 4 bits [T, d/2 rounded up]: element 2j in the low half of byte j, 2j + 1 in the high half
enum class NumberCodec : std::uint8_t {
  group8,    ///< 8 bits, groups of 64 along d; the last group of a row may be short
  group4,    ///< 4 bits, groups of 32 along d; the last group of a row may be short
  channel4,  ///< 4 bits, groups of 32 along T, each column on its own; the last group may be short
};

/// Bits of one code.
[[nodiscard]] constexpr int code_bits(NumberCodec codec) noexcept {
  return codec == NumberCodec::group8 ? 8 : 4;
}

/// Numbers that share a scale.
[[nodiscard]] constexpr std::int64_t group_size(NumberCodec codec) noexcept {
  return codec == NumberCodec::group8 ? 64 : 32;
}

/// Scales in the encoded form of [T,d].
[[nodiscard]] constexpr std::int64_t group_count(NumberCodec codec, std::int64_t T,
                                                 std::int64_t d) noexcept {
  const std::int64_t size = group_size(codec);
  return codec == NumberCodec::channel4 ? (T + size - 1) / size * d : T * ((d + size - 1) / size);
}

/// Bytes of the encoded form of [T,d]. T and d come from whoever bounded them: no overflow check.
[[nodiscard]] constexpr std::int64_t encoded_bytes(NumberCodec codec, std::int64_t T,
                                                   std::int64_t d) noexcept {
  return 4 * group_count(codec, T, d) + T * (code_bits(codec) == 8 ? d : (d + 1) / 2);
}

/// Writes x [T,d] to `to` of encoded_bytes(codec, T, d), on all threads. Throws Error (invalid) where a number is not
/// finite or the shape is negative.
void encode(NumberCodec codec, const float* x, std::int64_t T, std::int64_t d, std::uint8_t* to);

/// Some rows of an encoded matrix to be decoded.
struct DecodeTask {
  const std::uint8_t* from;   ///< of encoded_bytes(codec, T, d)
  std::int64_t T, d;          ///< of the whole matrix
  std::int64_t first, count;  ///< rows to decode
  void* out;                  ///< [count,d] numbers of `type`, rows out_stride numbers apart
  std::int64_t out_stride;    ///< at least d
  KvType type = KvType::f32;  ///< f16 and bf16 are rounded to the nearest, ties to even
};

/// Decodes all tasks, sharing their rows among threads. Throws Error (invalid) where rows lie outside a matrix.
void decode(NumberCodec codec, std::span<const DecodeTask> tasks);

/// The whole matrix: out [T,d].
void decode(NumberCodec codec, const std::uint8_t* from, std::int64_t T, std::int64_t d,
            float* out);

/// n numbers rounded to the nearest of `type`, ties to even: out [n] of that type. Runs on the calling thread. Throws Error
/// (invalid) where n is negative.
void round_numbers(const float* x, std::int64_t n, KvType type, void* out);

}  // namespace mneme::kernels
