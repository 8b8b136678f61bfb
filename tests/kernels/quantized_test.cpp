#include "mneme/kernels/quantized.h"

#include "mneme/core/error.h"

#include <ATen/Parallel.h>

#include "at_level.h"
#include "half.h"
#include "random_weights.h"
#include <cstring>
#include <gtest/gtest.h>

namespace mneme::kernels {
namespace {

// What the 8-bit form of activations stands for. In single precision as documented, so that ties round alike.
std::vector<double> rounded_activations(const std::vector<float>& x) {
  std::vector<double> rounded(x.size());
  for (std::size_t b = 0; b < x.size(); b += 32) {
    float amplitude = 0;
    for (std::size_t i = b; i < b + 32; ++i) amplitude = std::max(amplitude, std::fabs(x[i]));
    const float d = amplitude / 127.f, inverse = amplitude > 0 ? 127.f / amplitude : 0.f;
    for (std::size_t i = b; i < b + 32; ++i)
      rounded[i] = static_cast<double>(d) * std::nearbyint(x[i] * inverse);
  }
  return rounded;
}

// Sums in double precision, and the sums of the sizes of their terms, which bound what rounding may do.
struct Product {
  std::vector<double> y, size;
};

Product product(const std::vector<double>& w, std::int64_t N, std::int64_t K,
                const std::vector<double>& x, std::int64_t M) {
  Product p;
  for (std::int64_t m = 0; m < M; ++m) {
    for (std::int64_t n = 0; n < N; ++n) {
      double sum = 0, size = 0;
      for (std::int64_t k = 0; k < K; ++k) {
        const double term =
            x[static_cast<std::size_t>(m * K + k)] * w[static_cast<std::size_t>(n * K + k)];
        sum += term;
        size += std::fabs(term);
      }
      p.y.push_back(sum);
      p.size.push_back(size);
    }
  }
  return p;
}

double worst_error(const std::vector<float>& y, const Product& want) {
  double worst = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double error = std::fabs(y[i] - want.y[i]) / (want.size[i] + 1e-30);
    if (!(error <= worst)) worst = error;  // a NaN stays
  }
  return worst;
}

class Quantized : public AtLevel {};
MNEME_AT_EVERY_LEVEL(Quantized);

TEST_P(Quantized, UnpackingGivesTheNumbersExactly) {
  for (WeightType type : kWeightTypes) {
    for (std::int64_t K : {32, 64, 96, 544, 576}) {
      for (std::int64_t rows : {1, 3}) {
        const Weights w = random_weights(type, rows * K, 7);
        std::vector<float> out(w.numbers.size(), kNan);
        std::vector<std::uint16_t> narrow(w.numbers.size(), 0x7fc0);
        dequantize(type, w.bytes.data(), rows, K, out.data());
        dequantize_bf16(type, w.bytes.data(), rows, K, narrow.data());
        for (std::size_t i = 0; i < out.size(); ++i) {
          const auto want = static_cast<float>(w.numbers[i]);
          ASSERT_EQ(out[i], want) << name(type) << " " << i;
          ASSERT_EQ(from_bf16(narrow[i]), from_bf16(to_bf16(want))) << name(type) << " " << i;
        }
      }
    }
  }
}

TEST_P(Quantized, UnpackingOfPlainTypesHandlesEveryTail) {
  for (WeightType type : {WeightType::f32, WeightType::f16, WeightType::bf16}) {
    for (std::int64_t K = 0; K < 40; ++K) {
      const Weights w = random_weights(type, K, 8);
      std::vector<float> out(static_cast<std::size_t>(K) + 1, -7.f);
      dequantize(type, w.bytes.data(), 1, K, out.data());
      for (std::size_t i = 0; i < w.numbers.size(); ++i)
        ASSERT_EQ(out[i], w.numbers[i]) << name(type);
      EXPECT_EQ(out.back(), -7.f) << "written past the end";
    }
  }
}

TEST_P(Quantized, EveryHalfIsReadAndEveryRoundingToBf16IsRight) {
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  std::vector<float> out(halves.size());
  dequantize(WeightType::f16, halves.data(), 1, 65536, out.data());
  for (std::size_t i = 0; i < halves.size(); ++i) {
    const double want = from_half(halves[i]);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(out[i])) << i;
    } else {
      ASSERT_EQ(out[i], want) << i;
    }
  }
  std::vector<float> edges{0.f,        -0.f,          1.f,    1.00390625f, 1.01171875f,
                           1.0039063f, 3.3895314e38f, 1e-40f, kInfinity,   -kInfinity};
  std::vector<std::uint16_t> narrow(edges.size());
  dequantize_bf16(WeightType::f32, edges.data(), 1, static_cast<std::int64_t>(edges.size()),
                  narrow.data());
  for (std::size_t i = 0; i < edges.size(); ++i)
    EXPECT_EQ(narrow[i], to_bf16(edges[i])) << edges[i];
  std::uint16_t of_nan = 0;
  dequantize_bf16(WeightType::f32, &kNan, 1, 1, &of_nan);
  EXPECT_TRUE(std::isnan(from_bf16(of_nan)));
}

TEST_P(Quantized, ProductsOfEveryTypeAndShape) {
  for (WeightType type : kWeightTypes) {
    for (std::int64_t K : {32, 64, 96, 288, 480, 512, 544, 576, 1056, 1536}) {
      for (std::int64_t N : {1, 3, 4, 7, 17}) {
        for (std::int64_t M : {1, 2, 3, 4, 5, 7, 16, 69}) {
          if ((K > 600 && M > 5) || (K > 64 && M > 16)) continue;
          const Weights w = random_weights(type, N * K, 11);
          const auto x = normal_numbers(M * K, 12);
          const std::vector<double> seen =
              is_quantized(type) ? rounded_activations(x) : std::vector<double>(x.begin(), x.end());
          std::vector<float> y(static_cast<std::size_t>(M * N), kNan);
          matvec(type, w.bytes.data(), N, K, x.data(), M, y.data());
          ASSERT_LT(worst_error(y, product(w.numbers, N, K, seen, M)), 1e-6)
              << name(type) << " N " << N << " K " << K << " M " << M;
          std::fill(y.begin(), y.end(), kNan);
          matvec(type, w.bytes.data(), N, K, x.data(), M, y.data(), Activations::f32);
          ASSERT_LT(worst_error(y, product(w.numbers, N, K, {x.begin(), x.end()}, M)), 1e-6)
              << name(type) << " N " << N << " K " << K << " M " << M
              << ", activations not quantized";
          std::fill(y.begin(), y.end(), kNan);
          matvec(type, w.bytes.data(), N, K, x.data(), M, y.data(), Activations::q16);
          ASSERT_LT(worst_error(y, product(w.numbers, N, K, {x.begin(), x.end()}, M)), 3e-5)
              << name(type) << " N " << N << " K " << K << " M " << M << ", activations of 16 bits";
        }
      }
    }
  }
}

TEST_P(Quantized, ProductsOfPlainTypesHandleEveryTail) {
  for (WeightType type : {WeightType::f32, WeightType::f16, WeightType::bf16}) {
    for (std::int64_t K = 1; K < 70; ++K) {
      const Weights w = random_weights(type, 5 * K, 13);
      const auto x = normal_numbers(3 * K, 14);
      std::vector<float> y(15, kNan);
      matvec(type, w.bytes.data(), 5, K, x.data(), 3, y.data());
      ASSERT_LT(worst_error(y, product(w.numbers, 5, K, {x.begin(), x.end()}, 3)), 1e-6)
          << name(type) << " K " << K;
    }
  }
}

TEST_P(Quantized, LargestCodesAddUpExactly) {
  // Codes and activations at their limits with equal signs: any saturation of partial sums would show.
  constexpr std::int64_t kK = 64;
  const std::vector<float> high(kK, 127.f), low(kK, -127.f);
  const auto run = [](WeightType type, const Bytes& block, const std::vector<float>& x) {
    Bytes w(block);
    w.insert(w.end(), block.begin(), block.end());
    float y = kNan;
    matvec(type, w.data(), 1, kK, x.data(), 1, &y);
    return y;
  };
  const auto block = [](WeightType type, std::uint8_t code) {
    Bytes bytes(static_cast<std::size_t>(block_bytes(type)), code);
    const std::uint16_t one = 0x3c00, zero = 0;
    std::memcpy(bytes.data(), &one, 2);
    if (type == WeightType::q4_1) std::memcpy(bytes.data() + 2, &zero, 2);
    return bytes;
  };
  EXPECT_EQ(run(WeightType::q8_0, block(WeightType::q8_0, 0x80), high), -128.f * 127 * 64);
  EXPECT_EQ(run(WeightType::q8_0, block(WeightType::q8_0, 0x80), low), 128.f * 127 * 64);
  EXPECT_EQ(run(WeightType::q8_0, block(WeightType::q8_0, 0x7f), high), 127.f * 127 * 64);
  EXPECT_EQ(run(WeightType::q4_0, block(WeightType::q4_0, 0x00), high), -8.f * 127 * 64);
  EXPECT_EQ(run(WeightType::q4_0, block(WeightType::q4_0, 0xff), low), -7.f * 127 * 64);
  EXPECT_EQ(run(WeightType::q4_1, block(WeightType::q4_1, 0xff), high), 15.f * 127 * 64);
  EXPECT_EQ(run(WeightType::q4_1, block(WeightType::q4_1, 0xff), low), -15.f * 127 * 64);
}

TEST_P(Quantized, WholeNumbersGiveExactProducts) {
  // Activations are whole with a block maximum of 127, scales are 1: the 8-bit form is exact.
  constexpr std::int64_t kK = 96, kN = 9, kM = 3;
  std::mt19937 generator(5);
  std::vector<float> x(kM * kK);
  for (float& each : x) each = static_cast<float>(static_cast<int>(generator() % 255) - 127);
  for (std::size_t b = 0; b < x.size(); b += 32) x[b] = 127.f;
  for (WeightType type : {WeightType::q8_0, WeightType::q4_0, WeightType::q4_1}) {
    Weights w = random_weights(type, kN * kK, 15);
    const std::uint16_t one = 0x3c00, three = 0x4200;
    for (std::int64_t b = 0; b < kN * kK / 32; ++b) {
      std::memcpy(w.bytes.data() + b * block_bytes(type), &one, 2);
      if (type == WeightType::q4_1)
        std::memcpy(w.bytes.data() + b * block_bytes(type) + 2, &three, 2);
    }
    std::vector<float> unpacked(kN * kK), y(kM * kN, kNan);
    dequantize(type, w.bytes.data(), kN, kK, unpacked.data());
    matvec(type, w.bytes.data(), kN, kK, x.data(), kM, y.data());
    const auto want = product({unpacked.begin(), unpacked.end()}, kN, kK, {x.begin(), x.end()}, kM);
    for (std::size_t i = 0; i < want.y.size(); ++i) EXPECT_EQ(y[i], want.y[i]) << name(type);
  }
}

TEST_P(Quantized, NothingPastTheWeightsIsRead) {
  // Mapped files end where memory ends.
  for (WeightType type : kWeightTypes) {
    for (std::int64_t blocks = 1; blocks <= 35; ++blocks) {
      const std::int64_t K = blocks * block_size(type);
      for (std::int64_t N : {1, 4}) {
        const Weights w = random_weights(type, N * K, 16);
        const AtTheEnd mapped(w.bytes);
        const auto x = normal_numbers(K, 17);
        std::vector<float> y(static_cast<std::size_t>(N), kNan), again(y),
            out(static_cast<std::size_t>(N * K));
        std::vector<std::uint16_t> narrow(out.size());
        matvec(type, mapped.data(), N, K, x.data(), 1, y.data());
        matvec(type, w.bytes.data(), N, K, x.data(), 1, again.data());
        ASSERT_EQ(y, again) << name(type) << " " << blocks;
        dequantize(type, mapped.data(), N, K, out.data());
        dequantize_bf16(type, mapped.data(), N, K, narrow.data());
      }
    }
  }
}

TEST_P(Quantized, PackingReadsAndWritesNoMoreThanItSays) {
  for (WeightType type : {WeightType::q8_0, WeightType::q4_0, WeightType::q4_1}) {
    for (std::int64_t N : {0, 1, 15, 16, 17, 40}) {
      constexpr std::int64_t kK = 96;
      const Weights w = random_weights(type, N * kK, 19);
      const AtTheEnd mapped(w.bytes);
      const PackedMatrix matrix(type, mapped.data(), N, kK);
      const Bytes bytes(matrix.data(), matrix.data() + matrix.bytes());
      EXPECT_GE(matrix.bytes(), static_cast<std::int64_t>(w.bytes.size()));
      // A product of the last rows reads ahead, but needs nothing past the last byte.
      const auto x = normal_numbers(kK, 20);
      std::vector<float> y(static_cast<std::size_t>(N), kNan), again(y);
      const MatvecPart part{type, nullptr, N, y.data(), N, {}, &matrix};
      matvec({&part, 1}, x.data(), 1, kK);
      matvec(type, w.bytes.data(), N, kK, x.data(), 1, again.data());
      EXPECT_EQ(y, again) << name(type) << " " << N;
    }
  }
}

TEST_P(Quantized, PartsTogetherEqualEachAlone) {
  constexpr std::int64_t kK = 576, kM = 2;
  const auto x = normal_numbers(kM * kK, 18);
  const WeightType types[] = {WeightType::q4_1, WeightType::q8_0, WeightType::bf16,
                              WeightType::q4_1};
  const std::int64_t sizes[] = {37, 8, 5, 130};
  for (int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    std::vector<Weights> weights;
    std::vector<std::unique_ptr<PackedMatrix>> matrices;
    std::vector<std::vector<float>> alone, together;
    std::vector<MatvecPart> parts;
    for (std::size_t i = 0; i < 4; ++i) {
      weights.push_back(random_weights(types[i], sizes[i] * kK, static_cast<unsigned>(20 + i)));
      alone.emplace_back(kM * sizes[i], kNan);
      together.emplace_back(kM * sizes[i], kNan);
    }
    for (std::size_t i = 0; i < 4; ++i) {
      matvec(types[i], weights[i].bytes.data(), sizes[i], kK, x.data(), kM, alone[i].data());
      matrices.push_back(packed(types[i], weights[i], kK));
      parts.push_back({types[i],
                       weights[i].bytes.data(),
                       sizes[i],
                       together[i].data(),
                       sizes[i],
                       {},
                       matrices.back().get()});
    }
    matvec(parts, quantize_activations(x.data(), kM, kK));
    EXPECT_EQ(together, alone) << threads << " threads";
    for (auto& each : together) std::fill(each.begin(), each.end(), kNan);
    matvec(parts, x.data(), kM, kK);
    EXPECT_EQ(together, alone) << threads << " threads";
  }
  at::set_num_threads(1);
}

TEST_P(Quantized, RowsApartLeaveTheGapAlone) {
  constexpr std::int64_t kK = 64, kN = 6, kM = 3, kStride = 9;
  const Weights w = random_weights(WeightType::q4_1, kN * kK, 30);
  const auto x = normal_numbers(kM * kK, 31);
  std::vector<float> y(kM * kStride, -3.f), tight(kM * kN);
  const auto matrix = packed(WeightType::q4_1, w, kK);
  const MatvecPart part{WeightType::q4_1, w.bytes.data(), kN, y.data(), kStride, {}, matrix.get()};
  matvec({&part, 1}, x.data(), kM, kK);
  matvec(WeightType::q4_1, w.bytes.data(), kN, kK, x.data(), kM, tight.data());
  for (std::int64_t m = 0; m < kM; ++m) {
    for (std::int64_t n = 0; n < kStride; ++n) {
      EXPECT_EQ(y[static_cast<std::size_t>(m * kStride + n)],
                n < kN ? tight[static_cast<std::size_t>(m * kN + n)] : -3.f);
    }
  }
}

TEST_P(Quantized, ZeroAndBrokenActivations) {
  constexpr std::int64_t kK = 64, kN = 5;
  for (WeightType type : kWeightTypes) {
    const Weights w = random_weights(type, kN * kK, 32);
    for (const Activations form : {Activations::q8, Activations::q16}) {
      std::vector<float> x(kK, 0.f), y(kN, kNan);
      matvec(type, w.bytes.data(), kN, kK, x.data(), 1, y.data(), form);
      for (float each : y) EXPECT_EQ(each, 0.f) << name(type);
      for (float broken : {kNan, kInfinity}) {
        x[40] = broken;
        matvec(type, w.bytes.data(), kN, kK, x.data(), 1, y.data(), form);
        for (float each : y)
          EXPECT_FALSE(std::isfinite(each)) << name(type) << ": a broken number must not vanish";
      }
    }
  }
}

TEST_P(Quantized, ShapesThatDoNotFitAreRefused) {
  float x[48] = {}, y[4];
  const Bytes w(4096, 0);
  EXPECT_THROW(matvec(WeightType::q4_1, w.data(), 4, 48, x, 1, y), Error);
  EXPECT_THROW(matvec(WeightType::f32, w.data(), -1, 48, x, 1, y), Error);
  EXPECT_THROW(dequantize(WeightType::q8_0, w.data(), 1, 33, x), Error);
  EXPECT_THROW(dequantize(WeightType::q8_0, w.data(), -1, 32, x), Error);
  EXPECT_THROW(quantize_activations(x, -1, 32), Error);
  const MatvecPart narrow{WeightType::f32, w.data(), 2, y, 1};
  EXPECT_THROW(matvec({&narrow, 1}, x, 2, 16), Error);
  EXPECT_THROW(PackedMatrix(WeightType::f16, w.data(), 1, 32), Error);
  EXPECT_THROW(PackedMatrix(WeightType::q8_0, w.data(), 1, 33), Error);
  EXPECT_THROW(PackedMatrix(WeightType::q8_0, w.data(), -1, 32), Error);
  const PackedMatrix other(WeightType::q4_1, w.data(), 3, 32);
  const MatvecPart wrong{WeightType::q4_1, w.data(), 2, y, 2, {}, &other};
  EXPECT_THROW(matvec({&wrong, 1}, x, 1, 32), Error);
}

TEST(QuantizedAcrossLevels, UnpackedBitsAreTheSame) {
  const Level before = level();
  for (WeightType type : kWeightTypes) {
    const Weights w = random_weights(type, 20 * 576, 40);
    std::vector<std::vector<float>> wide;
    std::vector<std::vector<std::uint16_t>> narrow;
    for (Level each : supported_levels()) {
      set_level(each);
      wide.emplace_back(20 * 576);
      narrow.emplace_back(20 * 576);
      dequantize(type, w.bytes.data(), 20, 576, wide.back().data());
      dequantize_bf16(type, w.bytes.data(), 20, 576, narrow.back().data());
      EXPECT_EQ(wide.back(), wide.front()) << name(type) << " " << name(each);
      EXPECT_EQ(narrow.back(), narrow.front()) << name(type) << " " << name(each);
    }
  }
  set_level(before);
}

}  // namespace
}  // namespace mneme::kernels
