// Numbers in groups to 8 or 4 bits and back: code = round((x - min) / scale), x ~ code scale + min, with scale and min
// rounded to half precision first. code * scale is exact in single precision (8 + 11 bits), division and rounding are
// IEEE: every level writes and reads the same bits.
#pragma once

#include "mneme/kernels/simd.inl"

namespace mneme::kernels::MNEME_LEVEL {

struct Grid {
  float scale, minimum;
};

// The stored grid of numbers between low and high; what half precision cannot hold is clamped to its range.
inline Grid make_grid(float low, float high, int bits, u16* scale, u16* minimum) {
  const float steps = static_cast<float>((1 << bits) - 1);
  const float step = high / steps - low / steps;  // apart, so that the difference cannot overflow
  *scale = narrow_f16(step > 65504.f ? 65504.f : step);
  *minimum = narrow_f16(low < -65504.f ? -65504.f : low > 65504.f ? 65504.f : low);
  return {widen_f16(*scale), widen_f16(*minimum)};
}

inline F codes_of(F x, F scale, F minimum, F steps) {
  return min(steps, max(zero(), (x - minimum) / scale));
}

inline bool finite(float x) { return x - x == 0.f; }

inline void pack_nibbles(const u8* codes, i64 n, u8* out) {
  i64 i = 0;
  for (; i + 2 <= n; i += 2) out[i / 2] = static_cast<u8>(codes[i] | codes[i + 1] << 4);
  if (i < n) out[i / 2] = codes[i];
}

inline bool encode_group(const float* x, i64 n, int bits, u16* scale, u16* minimum, u8* codes) {
  F low = set1(__builtin_inff()), high = set1(-__builtin_inff()), poison = zero();
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F v = load(x + i);
    low = min(v, low);
    high = max(v, high);
    poison = poison + (v - v);
  }
  float lowest = smallest(low), highest = largest(high), bad = sum(poison);
  for (; i < n; ++i) {
    lowest = x[i] < lowest ? x[i] : lowest;
    highest = x[i] > highest ? x[i] : highest;
    bad += x[i] - x[i];
  }
  if (bad != 0.f) return false;
  const Grid grid = make_grid(lowest, highest, bits, scale, minimum);
  u8 whole[64 + kLanes];
  u8* const to = bits == 8 ? codes : whole;
  if (grid.scale == 0.f) {
    std::memset(to, 0, static_cast<std::size_t>(n));
  } else {
    const F s = set1(grid.scale), m = set1(grid.minimum),
            steps = set1(static_cast<float>((1 << bits) - 1));
    for (i = 0; i + kLanes <= n; i += kLanes) store_u8(to + i, codes_of(load(x + i), s, m, steps));
    if (i < n) {
      u8 rest[kLanes];
      store_u8(rest, codes_of(load_n(x + i, n - i), s, m, steps));
      std::memcpy(to + i, rest, static_cast<std::size_t>(n - i));
    }
  }
  if (bits == 4) pack_nibbles(whole, n, codes);
  return true;
}

inline bool encode_rows(const float* x, i64 n, i64 group, int bits, u16* scale, u16* minimum,
                        u8* codes) noexcept {
  for (i64 i = 0, g = 0; i < n; i += group, ++g) {
    if (!encode_group(x + i, smaller(group, n - i), bits, scale + g, minimum + g,
                      codes + i * bits / 8))
      return false;
  }
  return true;
}

inline bool encode_channels(const float* x, i64 tokens, i64 d, u16* scale, u16* minimum,
                            u8* codes) noexcept {
  const i64 row = (d + 1) / 2;
  const F steps = set1(15.f);
  for (i64 c = 0; c < d; c += kLanes) {
    const i64 n = smaller(kLanes, d - c);
    F low = load_n(x + c, n), high = low, poison = zero();
    for (i64 t = 0; t < tokens; ++t) {
      const F v = load_n(x + t * d + c, n);
      low = min(v, low);
      high = max(v, high);
      poison = poison + (v - v);
    }
    if (sum(poison) != 0.f || sum(poison) != sum(poison)) return false;
    float lows[kLanes], highs[kLanes], scales[kLanes], minima[kLanes];
    store(lows, low);
    store(highs, high);
    for (i64 i = 0; i < kLanes; ++i) scales[i] = minima[i] = 0.f;
    for (i64 i = 0; i < n; ++i) {
      const Grid grid = make_grid(lows[i], highs[i], 4, scale + c + i, minimum + c + i);
      scales[i] = grid.scale, minima[i] = grid.minimum;
    }
    // Where the scale is zero, dividing by infinity gives the code zero.
    for (i64 i = 0; i < kLanes; ++i) scales[i] = scales[i] == 0.f ? __builtin_inff() : scales[i];
    const F s = load(scales), m = load(minima);
    for (i64 t = 0; t < tokens; ++t) {
      u8 whole[kLanes];
      store_u8(whole, codes_of(load_n(x + t * d + c, n), s, m, steps));
      pack_nibbles(whole, n, codes + t * row + c / 2);
    }
  }
  return true;
}

struct AsF32 {
  static void put(void* p, i64 i, F v) { store(static_cast<float*>(p) + i, v); }
  static void put_n(void* p, i64 i, F v, i64 n) { store_n(static_cast<float*>(p) + i, v, n); }
};
struct AsF16 {
  static void put(void* p, i64 i, F v) { store_f16(static_cast<u16*>(p) + i, v); }
  static void put_n(void* p, i64 i, F v, i64 n) { store_f16_n(static_cast<u16*>(p) + i, v, n); }
};
struct AsBf16 {
  static void put(void* p, i64 i, F v) { store_bf16(static_cast<u16*>(p) + i, v); }
  static void put_n(void* p, i64 i, F v, i64 n) { store_bf16_n(static_cast<u16*>(p) + i, v, n); }
};

template <class As>
inline void round_numbers_as(const float* x, i64 n, void* out) {
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) As::put(out, i, load(x + i));
  if (i < n) As::put_n(out, i, load_n(x + i, n - i), n - i);
}

inline void round_numbers(const float* x, i64 n, KvType type, void* out) noexcept {
  if (type == KvType::f32) round_numbers_as<AsF32>(x, n, out);
  if (type == KvType::f16) round_numbers_as<AsF16>(x, n, out);
  if (type == KvType::bf16) round_numbers_as<AsBf16>(x, n, out);
}

// Codes i..i+kLanes of a row, i even; the *_n form reads no byte past those of n codes.
template <int kBits>
inline F load_codes(const u8* codes, i64 i) {
  if constexpr (kBits == 8) return load_u8(codes + i);
  return load_u4(codes + i / 2);
}
template <int kBits>
inline F load_codes_n(const u8* codes, i64 i, i64 n) {
  u8 rest[kLanes] = {};
  std::memcpy(rest, codes + i * kBits / 8, static_cast<std::size_t>((n * kBits + 7) / 8));
  return load_codes<kBits>(rest, 0);
}

template <class As, int kBits>
inline void decode_row_as(const u8* codes, i64 n, i64 group, const u16* scale, const u16* minimum,
                          void* out) {
  for (i64 i = 0, g = 0; i < n; ++g) {
    const i64 end = smaller(i + group, n);
    const F s = set1(widen_f16(scale[g])), m = set1(widen_f16(minimum[g]));
    for (; i + kLanes <= end; i += kLanes) As::put(out, i, fma(load_codes<kBits>(codes, i), s, m));
    if (i < end) As::put_n(out, i, fma(load_codes_n<kBits>(codes, i, end - i), s, m), end - i);
    i = end;
  }
}

inline void decode_row(const u8* codes, i64 n, i64 group, int bits, const u16* scale,
                       const u16* minimum, KvType type, void* out) noexcept {
  const auto as = [&](auto form) {
    using As = decltype(form);
    if (bits == 8) {
      decode_row_as<As, 8>(codes, n, group, scale, minimum, out);
    } else {
      decode_row_as<As, 4>(codes, n, group, scale, minimum, out);
    }
  };
  if (type == KvType::f32) as(AsF32{});
  if (type == KvType::f16) as(AsF16{});
  if (type == KvType::bf16) as(AsBf16{});
}

template <class As>
inline void decode_channels_as(const u8* codes, i64 tokens, i64 d, const u16* scale,
                               const u16* minimum, void* out, i64 out_stride) {
  const i64 row = (d + 1) / 2;
  for (i64 c = 0; c < d; c += kLanes) {
    const i64 n = smaller(kLanes, d - c);
    const F s = load_f16_n(scale + c, n), m = load_f16_n(minimum + c, n);
    if (n == kLanes) {
      for (i64 t = 0; t < tokens; ++t) {
        As::put(out, t * out_stride + c, fma(load_codes<4>(codes + t * row, c), s, m));
      }
    } else {
      for (i64 t = 0; t < tokens; ++t) {
        As::put_n(out, t * out_stride + c, fma(load_codes_n<4>(codes + t * row, c, n), s, m), n);
      }
    }
  }
}

inline void decode_channels(const u8* codes, i64 tokens, i64 d, const u16* scale,
                            const u16* minimum, KvType type, void* out, i64 out_stride) noexcept {
  if (type == KvType::f32)
    decode_channels_as<AsF32>(codes, tokens, d, scale, minimum, out, out_stride);
  if (type == KvType::f16)
    decode_channels_as<AsF16>(codes, tokens, d, scale, minimum, out, out_stride);
  if (type == KvType::bf16)
    decode_channels_as<AsBf16>(codes, tokens, d, scale, minimum, out, out_stride);
}

}  // namespace mneme::kernels::MNEME_LEVEL
