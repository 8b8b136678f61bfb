// Products of packed weights (packed.h) and activations of 8 bits, or of 16 in two parts of 8. Per block of 32,
// x ~ dx q with q in [-127,127], and with unsigned codes u the formats are
//   q4_1  w = d u + m      x'w = dx d sum(q u) + m (dx sum q)
//   q4_0  w = d (u - 8)    x'w = dx d (sum(q u) - 8 sum q)
//   q8_0  w = d (u - 128)  likewise
// Sixteen rows of weights lie side by side, one a lane, so that their sums need no addition across lanes, a scale serves
// a whole block, and products of small integers add up exactly in 32 bits before one multiplication by dx d.
#pragma once

#include "mneme/kernels/simd.inl"

namespace mneme::kernels::MNEME_LEVEL {

inline constexpr i64 kParts = kPackedRows / kLanes;  // vectors that hold a number of each row
// Weights are read once, so they are asked for early: hardware does not fetch across pages of 4 KiB, and memory answers
// later than the nearest cache can hold requests for. So each line is called into the second cache first.
inline constexpr i64 kFetchNear = 3072, kFetchFar = 4 * kFetchNear;

inline void fetch_ahead(const u8* p, i64 bytes) {
  for (i64 i = 0; i < bytes; i += 64) {
    __builtin_prefetch(p + kFetchFar + i, 0, 2);
    __builtin_prefetch(p + kFetchNear + i, 0, 3);
  }
}

// Rows of activations, from row m on.
struct PackedInput {
  const std::int8_t* q;
  const float *scale, *scaled_total;
  const std::int32_t* total;
  i64 q_stride, block_stride;

  PackedInput(const ActivationRows& a, i64 m)
      : q(a.q + m * a.q_stride),
        scale(a.scale + m * a.block_stride),
        scaled_total(a.scaled_total + m * a.block_stride),
        total(a.total + m * a.block_stride),
        q_stride(a.q_stride),
        block_stride(a.block_stride) {}
};

// What multiplies: `codes` of a block for the rows of one part with the bytes of kM rows of activations, exactly; the
// sums start at -kZero times the sum of the activations.

#if defined(__AVX512VNNI__)

template <int kM>
inline void start_sums(const PackedInput& x, i64 b, std::int32_t zero_code, __m512i (&sums)[kM]) {
  for (int m = 0; m < kM; ++m)
    sums[m] = _mm512_set1_epi32(-zero_code * x.total[m * x.block_stride + b]);
}

template <int kM>
inline void add_four(__m512i u, const PackedInput& x, i64 k, __m512i (&sums)[kM]) {
  for (int m = 0; m < kM; ++m)
    sums[m] =
        _mm512_dpbusd_epi32(sums[m], u, _mm512_set1_epi32(read<int>(x.q + m * x.q_stride + k)));
}

// Sums that are started again for every block wait for one another: with few rows of activations two of each.
struct PackedNibbles {
  static constexpr i64 kCodeBytes = kBlock / 2;
  template <int kZero, int kM>
  static void multiply(const u8* codes, i64, const PackedInput& x, i64 b, F (&out)[kM]) {
    const __m512i mask = _mm512_set1_epi8(0x0f);
    constexpr bool kTwo = kM <= 2;
    __m512i sums[kM], more[kM];
    start_sums(x, b, kZero, sums);
    for (int m = 0; m < kM; ++m) more[m] = _mm512_setzero_si512();
    for (i64 j = 0; j < 4; ++j) {
      const __m512i both = _mm512_loadu_si512(codes + 64 * j);
      add_four(_mm512_and_si512(both, mask), x, b * kBlock + 4 * j, sums);
      add_four(_mm512_and_si512(_mm512_srli_epi16(both, 4), mask), x, b * kBlock + 16 + 4 * j,
               kTwo ? more : sums);
    }
    for (int m = 0; m < kM; ++m)
      out[m] = _mm512_cvtepi32_ps(kTwo ? _mm512_add_epi32(sums[m], more[m]) : sums[m]);
  }
};

struct PackedBytes {
  static constexpr i64 kCodeBytes = kBlock;
  template <int kZero, int kM>
  static void multiply(const u8* codes, i64, const PackedInput& x, i64 b, F (&out)[kM]) {
    constexpr bool kTwo = kM <= 2;
    __m512i sums[kM], more[kM];
    start_sums(x, b, kZero, sums);
    for (int m = 0; m < kM; ++m) more[m] = _mm512_setzero_si512();
    for (i64 j = 0; j < 8; j += 2) {
      add_four(_mm512_loadu_si512(codes + 64 * j), x, b * kBlock + 4 * j, sums);
      add_four(_mm512_loadu_si512(codes + 64 * (j + 1)), x, b * kBlock + 4 * (j + 1),
               kTwo ? more : sums);
    }
    for (int m = 0; m < kM; ++m)
      out[m] = _mm512_cvtepi32_ps(kTwo ? _mm512_add_epi32(sums[m], more[m]) : sums[m]);
  }
};

inline constexpr int kMostTogether = 8;  // rows of activations that share an unpacked block

#elif defined(__AVX2__)

inline __m256i four_of(const PackedInput& x, i64 m, i64 k) {
  return _mm256_set1_epi32(read<int>(x.q + m * x.q_stride + k));
}
inline __m256i pairs_added(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

struct PackedNibbles {
  static constexpr i64 kCodeBytes = kBlock / 2;
  // A pair of products is at most 2 * 15 * 127, and the eight of a block add up to at most 30,480 in 16 bits.
  template <int kZero, int kM>
  static void multiply(const u8* codes, i64 part, const PackedInput& x, i64 b, F (&out)[kM]) {
    const __m256i mask = _mm256_set1_epi8(0x0f);
    __m256i sums[kM];
    for (int m = 0; m < kM; ++m) sums[m] = _mm256_setzero_si256();
    for (i64 j = 0; j < 4; ++j) {
      const __m256i both =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 64 * j + 32 * part));
      const __m256i low = _mm256_and_si256(both, mask);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
      for (int m = 0; m < kM; ++m) {
        const i64 k = b * kBlock + 4 * j;
        sums[m] = _mm256_add_epi16(sums[m], _mm256_maddubs_epi16(low, four_of(x, m, k)));
        sums[m] = _mm256_add_epi16(sums[m], _mm256_maddubs_epi16(high, four_of(x, m, k + 16)));
      }
    }
    for (int m = 0; m < kM; ++m) {
      const __m256i from = _mm256_set1_epi32(-kZero * x.total[m * x.block_stride + b]);
      out[m] = _mm256_cvtepi32_ps(_mm256_add_epi32(from, pairs_added(sums[m])));
    }
  }
};

struct PackedBytes {
  static constexpr i64 kCodeBytes = kBlock;
  // Signed codes by their size and sign: a pair of products is at most 2 * 128 * 127, which fits in 16 bits once.
  template <int kZero, int kM>
  static void multiply(const u8* codes, i64 part, const PackedInput& x, i64 b, F (&out)[kM]) {
    static_assert(kZero == 128);
    __m256i sums[kM];
    for (int m = 0; m < kM; ++m) sums[m] = _mm256_setzero_si256();
    for (i64 j = 0; j < 8; ++j) {
      const __m256i u =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 64 * j + 32 * part));
      const __m256i w = _mm256_xor_si256(u, _mm256_set1_epi8(static_cast<char>(0x80)));
      const __m256i size = _mm256_abs_epi8(w);
      for (int m = 0; m < kM; ++m) {
        const __m256i signed_x = _mm256_sign_epi8(four_of(x, m, b * kBlock + 4 * j), w);
        sums[m] = _mm256_add_epi32(sums[m], pairs_added(_mm256_maddubs_epi16(size, signed_x)));
      }
    }
    for (int m = 0; m < kM; ++m) out[m] = _mm256_cvtepi32_ps(sums[m]);
  }
};

inline constexpr int kMostTogether = 4;

#else

template <int kZero, int kM>
inline void multiply_four(const u8* codes, i64 part, const PackedInput& x, i64 k, int shift,
                          int mask, I (&sums)[kM]) {
  for (i64 r = 0; r < kLanes; ++r) {
    const u8* four = codes + 4 * (part * kLanes + r);
    for (int m = 0; m < kM; ++m) {
      const std::int8_t* q = x.q + m * x.q_stride + k;
      std::int32_t sum = 0;
      for (int i = 0; i < 4; ++i) sum += (((four[i] >> shift) & mask) - kZero) * q[i];
      sums[m][r] += sum;
    }
  }
}

struct PackedNibbles {
  static constexpr i64 kCodeBytes = kBlock / 2;
  template <int kZero, int kM>
  static void multiply(const u8* codes, i64 part, const PackedInput& x, i64 b, F (&out)[kM]) {
    I sums[kM] = {};
    for (i64 j = 0; j < 4; ++j) {
      multiply_four<kZero>(codes + 64 * j, part, x, b * kBlock + 4 * j, 0, 15, sums);
      multiply_four<kZero>(codes + 64 * j, part, x, b * kBlock + 16 + 4 * j, 4, 15, sums);
    }
    for (int m = 0; m < kM; ++m) out[m] = __builtin_convertvector(sums[m], F);
  }
};

struct PackedBytes {
  static constexpr i64 kCodeBytes = kBlock;
  template <int kZero, int kM>
  static void multiply(const u8* codes, i64 part, const PackedInput& x, i64 b, F (&out)[kM]) {
    I sums[kM] = {};
    for (i64 j = 0; j < 8; ++j)
      multiply_four<kZero>(codes + 64 * j, part, x, b * kBlock + 4 * j, 0, 255, sums);
    for (int m = 0; m < kM; ++m) out[m] = __builtin_convertvector(sums[m], F);
  }
};

inline constexpr int kMostTogether = 4;

#endif

struct PackedQ4_1 {
  using Codes = PackedNibbles;
  static constexpr int kZero = 0;
  static constexpr bool kHasMinimum = true;
};
struct PackedQ4_0 {
  using Codes = PackedNibbles;
  static constexpr int kZero = 8;
  static constexpr bool kHasMinimum = false;
};
struct PackedQ8_0 {
  using Codes = PackedBytes;
  static constexpr int kZero = 128;
  static constexpr bool kHasMinimum = false;
};

// Sixteen rows of weights against kM integer rows of activations; the first n of them are written. Two parts of a row are
// added up.
template <class Format, int kM>
inline void packed_rows(const u8* group, i64 blocks, const PackedInput& x, bool first_pass,
                        i64 parts_of_row, float* y, i64 y_stride, i64 n) {
  constexpr i64 kNumbers = Format::kHasMinimum ? 2 * kPackedRows : kPackedRows;
  constexpr i64 kCodes = kPackedRows * Format::Codes::kCodeBytes;
  const u16* header = reinterpret_cast<const u16*>(group);
  const u8* codes = group + packed_header_bytes(blocks, Format::kHasMinimum);
  constexpr i64 kBlockBytes = 2 * kNumbers + kCodes;  // of the memory that goes by
  for (i64 part = 0; part < kParts; ++part) {
    F acc[kM];
    for (int m = 0; m < kM; ++m) acc[m] = zero();
    for (i64 b = 0; b < blocks; ++b) {
      if (first_pass && part == 0) fetch_ahead(group + b * kBlockBytes, kBlockBytes);
      F dot[kM];
      Format::Codes::template multiply<Format::kZero>(codes + b * kCodes, part, x, b, dot);
      const F d = load_f16(header + b * kNumbers + part * kLanes);
      for (int m = 0; m < kM; ++m)
        acc[m] = fma(dot[m], d * set1(x.scale[m * x.block_stride + b]), acc[m]);
      if constexpr (Format::kHasMinimum) {
        const F minimum = load_f16(header + b * kNumbers + kPackedRows + part * kLanes);
        for (int m = 0; m < kM; ++m)
          acc[m] = fma(minimum, set1(x.scaled_total[m * x.block_stride + b]), acc[m]);
      }
    }
    const i64 begin = part * kLanes;
    if constexpr (kM % 2 == 0) {
      if (parts_of_row == 2) {
        for (int m = 0; m < kM / 2; ++m) acc[m] = acc[2 * m] + acc[2 * m + 1];
      }
    }
    for (int m = 0; m < kM; ++m) {
      if (m * parts_of_row >= kM) break;
      if (begin + kLanes <= n) {
        store(y + m * y_stride + begin, acc[m]);
      } else if (begin < n) {
        store_n(y + m * y_stride + begin, acc[m], n - begin);
      }
    }
  }
}

template <class Format>
inline void matvec_packed(const u8* w, i64 n_begin, i64 n_end, const ActivationRows& a, float* y,
                          i64 y_stride) noexcept {
  const i64 blocks = a.K / kBlock;
  const i64 group_bytes = packed_header_bytes(blocks, Format::kHasMinimum) +
                          blocks * kPackedRows * Format::Codes::kCodeBytes;
  // A group stays in the first cache while the rows of activations meet it, and so many of these in the second.
  constexpr i64 kRowsAtATime = 64;
  const i64 integer_rows = a.M * a.parts;
  for (i64 m_begin = 0; m_begin < integer_rows; m_begin += kRowsAtATime) {
    const i64 m_end = smaller(m_begin + kRowsAtATime, integer_rows);
    for (i64 n = n_begin; n < n_end; n += kPackedRows) {
      const u8* group = w + n / kPackedRows * group_bytes;
      const i64 rows = smaller(kPackedRows, n_end - n);
      const auto run = [&](auto together, i64 m) {
        packed_rows<Format, together()>(group, blocks, {a, m}, m == m_begin, a.parts,
                                        y + m / a.parts * y_stride + n, y_stride, rows);
      };
      i64 m = m_begin;
      for (; m + kMostTogether <= m_end; m += kMostTogether)
        run(std::integral_constant<int, kMostTogether>{}, m);
      if (m + 4 <= m_end) run(std::integral_constant<int, 4>{}, m), m += 4;
      if (m_end - m == 3) run(std::integral_constant<int, 3>{}, m);
      if (m_end - m == 2) run(std::integral_constant<int, 2>{}, m);
      if (m_end - m == 1) run(std::integral_constant<int, 1>{}, m);
    }
  }
}

}  // namespace mneme::kernels::MNEME_LEVEL
