#include "mneme/weights/weight_tensor.h"

#include <ATen/ATen.h>

#include "scratch.h"
#include <limits>
#include <random>

namespace mneme {
namespace {

using testing::expect_error;
using testing::raw;

// Bit patterns of IEEE halves, written out so that no conversion of ours is trusted.
constexpr std::uint16_t kHalfOne = 0x3c00, kHalfHalf = 0x3800, kHalfMinusTwo = 0xc000,
                        kHalfQuarter = 0x3400;

WeightTensor stored(WeightType type, std::vector<std::int64_t> shape, const std::string& bytes) {
  auto owner = std::make_shared<const std::string>(bytes);
  return {"w",
          type,
          std::move(shape),
          reinterpret_cast<const std::byte*>(owner->data()),
          static_cast<std::int64_t>(bytes.size()),
          owner};
}

std::vector<float> numbers(const at::Tensor& tensor) {
  const auto flat = tensor.contiguous();
  return {flat.const_data_ptr<float>(), flat.const_data_ptr<float>() + flat.numel()};
}

TEST(Dequantize, Q8_0ByHand) {
  std::string block = raw(kHalfHalf);
  for (int i = 0; i < 32; ++i) {
    block += raw(static_cast<std::int8_t>(i == 0 ? -128 : i == 1 ? 127 : i));
  }
  const auto x = numbers(dequantize(stored(WeightType::q8_0, {1, 32}, block)));
  EXPECT_EQ(x[0], -64.f);
  EXPECT_EQ(x[1], 63.5f);
  EXPECT_EQ(x[2], 1.f);
  EXPECT_EQ(x[31], 15.5f);
}

TEST(Dequantize, Q4_0ByHand) {
  // Byte i holds number i in its low half and number i + 16 in its high half; 8 stands for zero.
  std::string block = raw(kHalfMinusTwo) + std::string(16, '\x88');
  block[2] = '\xf0';   // number 0: 0 -> -8; number 16: 15 -> 7
  block[17] = '\x19';  // number 15: 9 -> 1; number 31: 1 -> -7
  const auto x = numbers(dequantize(stored(WeightType::q4_0, {32}, block)));
  std::vector<float> expected(32, -0.f);
  expected[0] = 16.f, expected[16] = -14.f, expected[15] = -2.f, expected[31] = 14.f;
  EXPECT_EQ(x, expected);
}

TEST(Dequantize, Q4_1ByHand) {
  std::string block = raw(kHalfQuarter) + raw(kHalfMinusTwo) + std::string(16, '\0');
  block[4] = '\xf8';
  block[19] = '\x21';
  const auto x = numbers(dequantize(stored(WeightType::q4_1, {32}, block)));
  std::vector<float> expected(32, -2.f);
  expected[0] = 0.f, expected[16] = 1.75f, expected[15] = -1.75f, expected[31] = -1.5f;
  EXPECT_EQ(x, expected);
}

TEST(Dequantize, BlocksFollowEachOtherAlongRows) {
  std::string bytes;
  for (int block = 0; block < 6; ++block) {
    bytes += raw(kHalfOne) + std::string(32, static_cast<char>(block));
  }
  const auto x = dequantize(stored(WeightType::q8_0, {2, 96}, bytes));
  EXPECT_EQ(x.sizes(), at::IntArrayRef({2, 96}));
  for (std::int64_t row = 0; row < 2; ++row) {
    for (std::int64_t column = 0; column < 96; ++column) {
      EXPECT_EQ(x[row][column].item<float>(), static_cast<float>(row * 3 + column / 32));
    }
  }
}

TEST(Dequantize, PlainTypesByHand) {
  EXPECT_EQ(numbers(dequantize(stored(WeightType::f32, {2}, raw(1.5f) + raw(-3.25f)))),
            (std::vector<float>{1.5f, -3.25f}));
  EXPECT_EQ(
      numbers(dequantize(stored(WeightType::f16, {2}, raw(kHalfOne) + raw<std::uint16_t>(0x0001)))),
      (std::vector<float>{1.f, 0x1p-24f}));
  EXPECT_EQ(numbers(dequantize(stored(WeightType::bf16, {2},
                                      raw<std::uint16_t>(0x3fc0) + raw<std::uint16_t>(0xff80)))),
            (std::vector<float>{1.5f, -std::numeric_limits<float>::infinity()}));
}

TEST(Dequantize, ScalarAndEmpty) {
  EXPECT_EQ(dequantize(stored(WeightType::f32, {}, raw(2.f))).item<float>(), 2.f);
  EXPECT_EQ(dequantize(stored(WeightType::q4_0, {0, 32}, "")).sizes(), at::IntArrayRef({0, 32}));
}

// Every half there is, against arithmetic on its fields.
TEST(Dequantize, EveryHalf) {
  std::string bytes;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    bytes += raw(static_cast<std::uint16_t>(bits));
  }
  const auto x = numbers(dequantize(stored(WeightType::f16, {0x10000}, bytes)));
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = static_cast<int>(bits >> 10 & 31),
              fraction = static_cast<int>(bits & 1023);
    const double sign = bits >> 15 ? -1 : 1;
    if (exponent == 31 && fraction != 0) {
      EXPECT_TRUE(std::isnan(x[bits]));
    } else if (exponent == 31) {
      EXPECT_EQ(x[bits], sign * std::numeric_limits<float>::infinity());
    } else {
      const double value =
          exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
      EXPECT_EQ(x[bits], static_cast<float>(sign * value));
    }
  }
}

TEST(ToTensor, IsAViewThatKeepsItsOwner) {
  auto weight = stored(WeightType::f32, {2, 2}, raw(std::vector<float>{1, 2, 3, 4}));
  const std::weak_ptr<const void> owner = weight.owner;
  const auto* data = weight.data;
  auto tensor = to_tensor(weight);
  weight = {};
  EXPECT_EQ(static_cast<const void*>(tensor.const_data_ptr()), static_cast<const void*>(data));
  EXPECT_FALSE(owner.expired());
  auto row = tensor[1];
  tensor.reset();
  EXPECT_EQ(row[0].item<float>(), 3.f);
  EXPECT_FALSE(owner.expired());
  row.reset();
  EXPECT_TRUE(owner.expired());
}

TEST(ToTensor, CarriesThePlainTypes) {
  EXPECT_EQ(to_tensor(stored(WeightType::f16, {1}, raw(kHalfOne))).scalar_type(), at::kHalf);
  EXPECT_EQ(to_tensor(stored(WeightType::bf16, {1}, raw<std::uint16_t>(0x3f80))).item<float>(),
            1.f);
  EXPECT_EQ(to_tensor(stored(WeightType::f32, {0, 3}, "")).sizes(), at::IntArrayRef({0, 3}));
}

TEST(ToTensor, CopiesWhatIsMisaligned) {
  auto weight = stored(WeightType::f32, {2}, "x" + raw(std::vector<float>{5, 6}));
  weight.data += 1, weight.bytes -= 1;
  const auto tensor = to_tensor(weight);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % 4, 0U);
  EXPECT_EQ(numbers(tensor), (std::vector<float>{5, 6}));
}

TEST(ToTensor, RefusesQuantizedWeights) {
  const auto weight = stored(WeightType::q8_0, {32}, std::string(34, '\0'));
  expect_error(Errc::unsupported, "weight 'w' is quantized (q8_0)", [&] { to_tensor(weight); });
}

}  // namespace
}  // namespace mneme
