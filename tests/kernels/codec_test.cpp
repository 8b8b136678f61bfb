#include "mneme/kernels/codec.h"

#include "mneme/core/error.h"

#include <ATen/Parallel.h>

#include "at_level.h"
#include "half.h"
#include <bit>
#include <cstring>
#include <gtest/gtest.h>
#include <iterator>

namespace mneme::kernels {
namespace {

constexpr NumberCodec kCodecs[] = {NumberCodec::group8, NumberCodec::group4, NumberCodec::channel4};

// The encoded bytes and the decoded numbers, by the definition.
struct Oracle {
  std::vector<std::uint8_t> bytes;
  std::vector<float> numbers;
};

Oracle oracle(NumberCodec codec, const std::vector<float>& x, std::int64_t T, std::int64_t d) {
  Oracle o;
  o.bytes.assign(static_cast<std::size_t>(encoded_bytes(codec, T, d)), 0);
  o.numbers.resize(x.size());
  const std::int64_t groups = group_count(codec, T, d), size = group_size(codec);
  const float steps = code_bits(codec) == 8 ? 255.f : 15.f;
  const bool channels = codec == NumberCodec::channel4;
  const std::int64_t row_bytes = code_bits(codec) == 8 ? d : (d + 1) / 2;
  for (std::int64_t g = 0; g < groups; ++g) {
    std::vector<std::int64_t> members;
    for (std::int64_t t = 0; t < T; ++t) {
      for (std::int64_t c = 0; c < d; ++c) {
        const std::int64_t of =
            channels ? t / size * d + c : t * ((d + size - 1) / size) + c / size;
        if (of == g) members.push_back(t * d + c);
      }
    }
    float low = kInfinity, high = -kInfinity;
    for (std::int64_t i : members)
      low = std::min(low, x[static_cast<std::size_t>(i)]),
      high = std::max(high, x[static_cast<std::size_t>(i)]);
    const std::uint16_t scale = to_half(high / steps - low / steps), minimum = to_half(low);
    std::memcpy(o.bytes.data() + 2 * g, &scale, 2);
    std::memcpy(o.bytes.data() + 2 * (groups + g), &minimum, 2);
    const auto s = static_cast<float>(from_half(scale)), m = static_cast<float>(from_half(minimum));
    for (std::int64_t i : members) {
      const float q =
          s == 0.f
              ? 0.f
              : std::nearbyint(std::clamp((x[static_cast<std::size_t>(i)] - m) / s, 0.f, steps));
      const auto code = static_cast<std::uint8_t>(q);
      std::uint8_t* row = o.bytes.data() + 4 * groups + i / d * row_bytes;
      if (code_bits(codec) == 8) {
        row[i % d] = code;
      } else {
        row[i % d / 2] = static_cast<std::uint8_t>(row[i % d / 2] | code << (i % d % 2 * 4));
      }
      o.numbers[static_cast<std::size_t>(i)] = q * s + m;
    }
  }
  return o;
}

class Codec : public AtLevel {};
MNEME_AT_EVERY_LEVEL(Codec);

TEST_P(Codec, BytesAndNumbersAreThoseOfTheDefinition) {
  for (NumberCodec codec : kCodecs) {
    for (std::int64_t T : {1, 2, 31, 32, 33, 65, 100}) {
      for (std::int64_t d : {1, 2, 7, 8, 31, 32, 33, 63, 64, 65, 72, 96, 130}) {
        const auto x = normal_numbers(T * d, static_cast<unsigned>(T * 1000 + d), 3.f);
        const Oracle want = oracle(codec, x, T, d);
        std::vector<std::uint8_t> bytes(want.bytes.size() + 8, 0xee);
        encode(codec, x.data(), T, d, bytes.data());
        for (std::size_t i = want.bytes.size(); i < bytes.size(); ++i)
          ASSERT_EQ(bytes[i], 0xee) << "written past the end";
        bytes.resize(want.bytes.size());
        ASSERT_EQ(bytes, want.bytes)
            << "codec " << static_cast<int>(codec) << " T " << T << " d " << d;
        std::vector<float> back(x.size() + 1, kNan);
        back.back() = -7.f;
        decode(codec, bytes.data(), T, d, back.data());
        ASSERT_EQ(back.back(), -7.f) << "written past the end";
        back.pop_back();
        ASSERT_EQ(back, want.numbers)
            << "codec " << static_cast<int>(codec) << " T " << T << " d " << d;
      }
    }
  }
}

TEST_P(Codec, ErrorIsAtMostHalfAStepAndARoundedMinimum) {
  constexpr std::int64_t kT = 64, kD = 64;
  const auto x = normal_numbers(kT * kD, 3);
  for (NumberCodec codec : kCodecs) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(encoded_bytes(codec, kT, kD)));
    std::vector<float> back(x.size(), kNan);
    encode(codec, x.data(), kT, kD, bytes.data());
    decode(codec, bytes.data(), kT, kD, back.data());
    // A group of normal numbers spans less than 9; halves near 4 are 2^-8 apart.
    const double bound = 0.5 * 9.0 / (code_bits(codec) == 8 ? 255 : 15) + 2 * std::ldexp(1, -8);
    for (std::size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(back[i], x[i], bound);
  }
}

TEST_P(Codec, EncodingAgainChangesNothingWhereTheGridIsExact) {
  // Whole numbers from 0 to 255 (or 15) in every group lie on the grid.
  constexpr std::int64_t kT = 32, kD = 64;
  for (NumberCodec codec : kCodecs) {
    const int steps = code_bits(codec) == 8 ? 255 : 15;
    std::vector<float> x(kT * kD), back(x.size(), kNan);
    for (std::int64_t t = 0; t < kT; ++t) {
      for (std::int64_t c = 0; c < kD; ++c) {
        const std::int64_t along = codec == NumberCodec::channel4 ? t : c % group_size(codec);
        x[static_cast<std::size_t>(t * kD + c)] =
            along == 0   ? 0.f
            : along == 1 ? static_cast<float>(steps)
                         : static_cast<float>((t * 37 + c * 11) % (steps + 1));
      }
    }
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(encoded_bytes(codec, kT, kD)));
    encode(codec, x.data(), kT, kD, bytes.data());
    decode(codec, bytes.data(), kT, kD, back.data());
    EXPECT_EQ(back, x);
  }
}

TEST_P(Codec, ConstantGroupsAndTheEndsOfHalfPrecision) {
  constexpr std::int64_t kT = 32, kD = 64;
  for (NumberCodec codec : kCodecs) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(encoded_bytes(codec, kT, kD)));
    std::vector<float> x(kT * kD, 1.5f), back(x.size(), kNan);
    encode(codec, x.data(), kT, kD, bytes.data());
    decode(codec, bytes.data(), kT, kD, back.data());
    EXPECT_EQ(back, x);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = (i / kD + i) % 2 == 0 ? 3e38f : -3e38f;
    encode(codec, x.data(), kT, kD, bytes.data());
    decode(codec, bytes.data(), kT, kD, back.data());
    for (float each : back) ASSERT_TRUE(std::isfinite(each));
  }
}

TEST_P(Codec, ARangeOfRowsEqualsThoseRowsOfTheWhole) {
  constexpr std::int64_t kT = 101, kD = 40, kStride = 48;
  const auto x = normal_numbers(kT * kD, 4);
  for (NumberCodec codec : kCodecs) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(encoded_bytes(codec, kT, kD)));
    encode(codec, x.data(), kT, kD, bytes.data());
    std::vector<float> whole(x.size(), kNan);
    decode(codec, bytes.data(), kT, kD, whole.data());
    for (int threads : {1, 3}) {
      at::set_num_threads(threads);
      std::vector<float> out(2 * kT * kStride, -5.f);
      const DecodeTask tasks[] = {
          {bytes.data(), kT, kD, 0, 0, out.data(), kStride, KvType::f32},
          {bytes.data(), kT, kD, 17, 60, out.data(), kStride, KvType::f32},
          {bytes.data(), kT, kD, 100, 1, out.data() + 60 * kStride, kStride, KvType::f32},
          {bytes.data(), kT, kD, 0, kT, out.data() + kT * kStride, kStride, KvType::f32}};
      decode(codec, tasks);
      for (std::int64_t r = 0; r < 2 * kT; ++r) {
        const std::int64_t from = r < 60 ? 17 + r : r == 60 ? 100 : r >= kT ? r - kT : -1;
        for (std::int64_t c = 0; c < kStride; ++c) {
          const float want =
              from >= 0 && c < kD ? whole[static_cast<std::size_t>(from * kD + c)] : -5.f;
          ASSERT_EQ(out[static_cast<std::size_t>(r * kStride + c)], want) << r << " " << c;
        }
      }
    }
    at::set_num_threads(1);
  }
}

TEST_P(Codec, NothingPastTheBytesIsReadOrWritten) {
  for (NumberCodec codec : kCodecs) {
    for (std::int64_t T : {1, 3, 33}) {
      for (std::int64_t d = 1; d < 70; ++d) {
        const auto x = normal_numbers(T * d, 7);
        std::vector<std::uint8_t> bytes(static_cast<std::size_t>(encoded_bytes(codec, T, d)));
        std::vector<float> out(x.size(), kNan), again(x.size(), kNan);
        std::vector<std::uint8_t> numbers(x.size() * sizeof(float));
        std::memcpy(numbers.data(), x.data(), numbers.size());
        const AtTheEnd input(numbers), output(bytes);
        encode(codec, reinterpret_cast<const float*>(input.data()), T, d, output.data());
        encode(codec, x.data(), T, d, bytes.data());
        ASSERT_EQ(std::memcmp(bytes.data(), output.data(), bytes.size()), 0);
        decode(codec, output.data(), T, d, reinterpret_cast<float*>(input.data()));
        decode(codec, bytes.data(), T, d, again.data());
        ASSERT_EQ(std::memcmp(again.data(), input.data(), numbers.size()), 0);
      }
    }
  }
}

TEST_P(Codec, HalvesAreTheRoundedNumbers) {
  constexpr std::int64_t kT = 33, kD = 42;
  const auto x = normal_numbers(kT * kD, 5);
  for (NumberCodec codec : kCodecs) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(encoded_bytes(codec, kT, kD)));
    encode(codec, x.data(), kT, kD, bytes.data());
    std::vector<float> whole(x.size(), kNan);
    decode(codec, bytes.data(), kT, kD, whole.data());
    std::vector<std::uint16_t> f16(x.size()), bf16(x.size());
    const DecodeTask to_f16{bytes.data(), kT, kD, 0, kT, f16.data(), kD, KvType::f16};
    const DecodeTask to_b16{bytes.data(), kT, kD, 0, kT, bf16.data(), kD, KvType::bf16};
    decode(codec, {&to_f16, 1});
    decode(codec, {&to_b16, 1});
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(f16[i], to_half(whole[i]));
      ASSERT_EQ(bf16[i], to_bf16(whole[i]));
    }
  }
}

TEST_P(Codec, NumbersThatAreNotFiniteAndWrongRowsAreRefused) {
  constexpr std::int64_t kT = 33, kD = 40;
  for (NumberCodec codec : kCodecs) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(encoded_bytes(codec, kT, kD)));
    for (float broken : {kNan, kInfinity, -kInfinity}) {
      for (std::size_t at : {std::size_t{0}, std::size_t{39}, std::size_t{33 * 40 - 1}}) {
        auto x = normal_numbers(kT * kD, 6);
        x[at] = broken;
        EXPECT_THROW(encode(codec, x.data(), kT, kD, bytes.data()), Error)
            << broken << " at " << at;
      }
    }
    std::vector<float> out(kT * kD);
    for (const auto& [first, count] : {std::pair{-1, 2}, {0, 34}, {33, 1}, {0, -1}}) {
      const DecodeTask task{bytes.data(), kT, kD, first, count, out.data(), kD, KvType::f32};
      EXPECT_THROW(decode(codec, {&task, 1}), Error) << first << " " << count;
    }
    const DecodeTask narrow{bytes.data(), kT, kD, 0, 2, out.data(), kD - 1, KvType::f32};
    EXPECT_THROW(decode(codec, {&narrow, 1}), Error);
    EXPECT_THROW(encode(codec, out.data(), -1, kD, bytes.data()), Error);
  }
}

// Numbers whose roundings differ most: ties, the smallest and largest halves, what is beyond them, signed zeros.
std::vector<float> numbers_to_round(std::int64_t n, unsigned seed) {
  constexpr float kHard[] = {0.f,       -0.f,       1.f + 0x1p-11f, 1.f + 0x3p-11f, 1.f + 0x1p-8f,
                             0x1p-24f,  0x1p-25f,   0x3p-25f,       -0x1p-14f,      65504.f,
                             65519.99f, -65520.f,   1e30f,          kInfinity,      -kInfinity,
                             0x1p-126f, 0x1.ffp-15f};
  auto out = normal_numbers(n, seed, 3.f);
  for (std::size_t i = 0; i < out.size(); i += 2) out[i] = kHard[(i / 2 + seed) % std::size(kHard)];
  return out;
}

TEST_P(Codec, RoundingIsToTheNearestOverEveryTail) {
  for (std::int64_t n : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1003}) {
    const auto x = numbers_to_round(n, static_cast<unsigned>(n));
    const std::size_t count = x.size();
    std::vector<std::uint8_t> bytes(4 * count);
    if (count > 0) std::memcpy(bytes.data(), x.data(), bytes.size());
    const AtTheEnd from(bytes);
    const auto* in = reinterpret_cast<const float*>(from.data());
    for (const auto type : {KvType::f32, KvType::f16, KvType::bf16}) {
      const std::size_t size = type == KvType::f32 ? 4 : 2;
      const AtTheEnd to(std::vector<std::uint8_t>(size * count, 0xee));
      round_numbers(in, n, type, to.data());
      for (std::size_t i = 0; i < count; ++i) {
        std::uint32_t got = 0;
        std::memcpy(&got, to.data() + i * size, size);
        const std::uint32_t want = type == KvType::f32   ? std::bit_cast<std::uint32_t>(x[i])
                                   : type == KvType::f16 ? to_half(x[i])
                                                         : to_bf16(x[i]);
        EXPECT_EQ(got, want) << x[i] << " as type " << static_cast<int>(type) << ", " << i << " of "
                             << n;
      }
    }
  }
}

TEST_P(Codec, RoundingKeepsWhatIsNoNumber) {
  for (std::int64_t n = 1; n <= 33; ++n) {
    const std::vector<float> x(static_cast<std::size_t>(n), kNan);
    std::vector<std::uint16_t> out(x.size());
    round_numbers(x.data(), n, KvType::f16, out.data());
    for (const auto each : out) EXPECT_TRUE(std::isnan(from_half(each))) << n;
    round_numbers(x.data(), n, KvType::bf16, out.data());
    for (const auto each : out) EXPECT_TRUE(std::isnan(from_bf16(each))) << n;
  }
  EXPECT_THROW(round_numbers(nullptr, -1, KvType::f16, nullptr), Error);
}

TEST(CodecLayout, SizesAreThoseOfTheSections) {
  static_assert(encoded_bytes(NumberCodec::group8, 10, 64) == 10 * (4 + 64));
  static_assert(encoded_bytes(NumberCodec::group8, 10, 65) == 10 * (8 + 65));
  static_assert(encoded_bytes(NumberCodec::group4, 10, 64) == 10 * (8 + 32));
  static_assert(encoded_bytes(NumberCodec::group4, 1, 33) == 8 + 17);
  static_assert(encoded_bytes(NumberCodec::channel4, 64, 64) == 2 * 64 * 4 + 64 * 32);
  static_assert(encoded_bytes(NumberCodec::channel4, 65, 7) == 3 * 7 * 4 + 65 * 4);
  static_assert(encoded_bytes(NumberCodec::channel4, 0, 7) == 0);
}

TEST(CodecLayout, AWorkedGroup) {
  // One row of three numbers, 4 bits: scale (3.5 - -4) / 15 = 0.5, codes 0, 15 and (1 + 4) / 0.5 = 10.
  const float x[] = {-4.f, 3.5f, 1.f};
  std::uint8_t bytes[4 + 2];
  static_assert(encoded_bytes(NumberCodec::group4, 1, 3) == sizeof bytes);
  encode(NumberCodec::group4, x, 1, 3, bytes);
  const std::uint8_t want[] = {0x00, 0x38, 0x00, 0xc4, 0xf0, 0x0a};
  EXPECT_EQ(std::memcmp(bytes, want, sizeof want), 0);
}

}  // namespace
}  // namespace mneme::kernels
