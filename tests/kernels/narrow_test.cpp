#include "mneme/kernels/narrow.h"

#include "mneme/core/error.h"

#include <ATen/Parallel.h>

#include "at_level.h"
#include "random_weights.h"

namespace mneme::kernels {
namespace {

constexpr NarrowType kForms[] = {NarrowType::bf16, NarrowType::int16, NarrowType::int8};

std::string name(NarrowType form) {
  return form == NarrowType::bf16 ? "bf16" : form == NarrowType::int16 ? "int16" : "int8";
}

// How far sums may be from exact ones, over the size that sums of such terms have: where they happen to cancel, what
// rounding adds does not shrink with them.
double largest_error(NarrowType form) {
  return form == NarrowType::bf16 ? 4e-3 : form == NarrowType::int16 ? 2e-3 : 1.5e-2;
}

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return x / 2 * (1 + std::tanh(std::sqrt(2 / 3.14159265358979) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return std::max(x, 0.0);
  }
  return x;
}

std::vector<double> product(const std::vector<float>& x, std::int64_t M, std::int64_t x_stride,
                            const Weights& w, std::int64_t N, std::int64_t K,
                            const std::vector<float>& bias, Activation activation) {
  std::vector<double> y;
  for (std::int64_t m = 0; m < M; ++m) {
    for (std::int64_t n = 0; n < N; ++n) {
      double sum = bias.empty() ? 0 : bias[static_cast<std::size_t>(n)];
      for (std::int64_t k = 0; k < K; ++k)
        sum += x[static_cast<std::size_t>(m * x_stride + k)] *
               w.numbers[static_cast<std::size_t>(n * K + k)];
      y.push_back(activated(activation, sum));
    }
  }
  return y;
}

// The root mean square of the differences over that of the sums' expected size, the root of the sum of their squared terms.
double rounding_error(const std::vector<float>& y, const std::vector<double>& want,
                      const std::vector<float>& x, std::int64_t M, const Weights& w, std::int64_t N,
                      std::int64_t K) {
  EXPECT_EQ(y.size(), want.size());
  double difference = 0, size = 0;
  for (std::int64_t m = 0; m < M; ++m) {
    for (std::int64_t n = 0; n < N; ++n) {
      const auto at = static_cast<std::size_t>(m * N + n);
      difference += std::pow(y[at] - want[at], 2);
      for (std::int64_t k = 0; k < K; ++k)
        size += std::pow(
            x[static_cast<std::size_t>(m * K + k)] * w.numbers[static_cast<std::size_t>(n * K + k)],
            2);
    }
  }
  return std::sqrt(difference / size);
}

class Narrow : public AtLevel {
 protected:
  void TearDown() override {
    at::set_num_threads(1);
    AtLevel::TearDown();
  }
};
MNEME_AT_EVERY_LEVEL(Narrow);

TEST_P(Narrow, ProductsOfEveryFormAndShape) {
  for (const NarrowType form : kForms) {
    if (!multiplies(form)) continue;
    for (const std::int64_t K : {1, 7, 31, 32, 33, 64, 96, 384, 545, 1056}) {
      for (const std::int64_t N : {1, 16, 31, 32, 33, 70}) {
        const Weights w = random_weights(WeightType::f32, N * K, 1);
        const NarrowMatrix matrix(form, WeightType::f32, w.bytes.data(), N, K);
        for (const std::int64_t M : {1, 5, 6, 7, 12, 13, 25, 97}) {
          if (K > 100 && M > 13) continue;
          const auto x = normal_numbers(M * K, 2);
          std::vector<float> y(static_cast<std::size_t>(M * N), kNan);
          const NarrowPart part{&matrix, nullptr, Activation::none, y.data(), N};
          multiply({&part, 1}, x.data(), M, K, K);
          const auto want = product(x, M, K, w, N, K, {}, Activation::none);
          // The bound is that of a mean over many sums; few of them scatter.
          ASSERT_LT(rounding_error(y, want, x, M, w, N, K),
                    largest_error(form) * (M * N < 100 ? 3 : 1))
              << name(form) << " M " << M << " N " << N << " K " << K;
        }
      }
    }
  }
}

TEST_P(Narrow, NumbersThatTheFormHoldsAreExact) {
  // Whole numbers of few bits; for int8 what the turned ones are, since R (R u / 32) = u.
  constexpr std::int64_t kK = 96, kN = 40, kM = 9;
  const auto turned = [](std::vector<float> u) {
    for (std::size_t at = 0; at < u.size(); at += 32) {
      for (std::size_t step = 1; step < 32; step *= 2) {
        for (std::size_t i = 0; i < 32; ++i) {
          if ((i & step) != 0) continue;
          const float a = u[at + i], b = u[at + i + step];
          u[at + i] = a + b;
          u[at + i + step] = a - b;
        }
      }
      for (std::size_t i = 0; i < 32; ++i) u[at + i] /= 32;
    }
    return u;
  };
  std::mt19937 generator(4);
  const auto whole = [&](std::int64_t n, int most, std::int64_t group) {
    std::vector<float> u(static_cast<std::size_t>(n));
    for (auto& each : u)
      each = static_cast<float>(
          static_cast<int>(generator() % (2 * static_cast<unsigned>(most) + 1)) - most);
    for (std::int64_t i = 0; i < n; i += group)
      u[static_cast<std::size_t>(i)] = static_cast<float>(most);
    return u;
  };
  for (const NarrowType form : kForms) {
    if (!multiplies(form) || form == NarrowType::int8) continue;
    const int most = form == NarrowType::bf16 ? 127 : 2047;
    const auto x = whole(kM * kK, most, kK),
               weights = whole(kN * kK, form == NarrowType::bf16 ? 63 : 2047, kK);
    Weights w;
    w.bytes.resize(weights.size() * sizeof(float));
    std::memcpy(w.bytes.data(), weights.data(), w.bytes.size());
    w.numbers.assign(weights.begin(), weights.end());
    const NarrowMatrix matrix(form, WeightType::f32, w.bytes.data(), kN, kK);
    std::vector<float> y(kM * kN, kNan);
    const NarrowPart part{&matrix, nullptr, Activation::none, y.data(), kN};
    multiply({&part, 1}, x.data(), kM, kK, kK);
    EXPECT_LT(relative_error(y, product(x, kM, kK, w, kN, kK, {}, Activation::none)), 1e-6)
        << name(form);
  }
  if (!multiplies(NarrowType::int8)) return;
  // Whatever numbers of a row form a group, the same of weights do, so that exactness shows in products of whole blocks of
  // equal numbers: a block of 1/32 in one place is a row of ones once turned.
  const auto x = turned(whole(kM * 32, 127, 32)), weights = turned(whole(kN * 32, 127, 32));
  Weights w;
  w.bytes.resize(weights.size() * sizeof(float));
  std::memcpy(w.bytes.data(), weights.data(), w.bytes.size());
  w.numbers.assign(weights.begin(), weights.end());
  const NarrowMatrix matrix(NarrowType::int8, WeightType::f32, w.bytes.data(), kN, 32);
  std::vector<float> y(kM * kN, kNan);
  const NarrowPart part{&matrix, nullptr, Activation::none, y.data(), kN};
  multiply({&part, 1}, x.data(), kM, 32, 32);
  EXPECT_LT(relative_error(y, product(x, kM, 32, w, kN, 32, {}, Activation::none)), 1e-6);
}

TEST_P(Narrow, BiasActivationAndGaps) {
  constexpr std::int64_t kK = 50, kN = 45, kM = 14, kXStride = 57, kYStride = 48;
  for (const NarrowType form : kForms) {
    if (!multiplies(form)) continue;
    for (const WeightType type : {WeightType::f32, WeightType::f16, WeightType::bf16}) {
      const Weights w = random_weights(type, kN * kK, 5);
      const NarrowMatrix matrix(form, type, w.bytes.data(), kN, kK);
      const auto x = normal_numbers(kM * kXStride, 6, 0.3f), bias = normal_numbers(kN, 7);
      for (const auto activation : {Activation::none, Activation::silu, Activation::gelu,
                                    Activation::gelu_tanh, Activation::relu}) {
        std::vector<float> y(kM * kYStride, -7.f), tight;
        const NarrowPart part{&matrix, bias.data(), activation, y.data(), kYStride};
        multiply({&part, 1}, x.data(), kM, kK, kXStride);
        for (std::int64_t m = 0; m < kM; ++m) {
          for (std::int64_t n = 0; n < kYStride; ++n) {
            const float each = y[static_cast<std::size_t>(m * kYStride + n)];
            if (n < kN) {
              tight.push_back(each);
            } else {
              ASSERT_EQ(each, -7.f) << "the gap stays";
            }
          }
        }
        EXPECT_LT(relative_error(tight, product(x, kM, kXStride, w, kN, kK, bias, activation)),
                  1.5 * largest_error(form))
            << name(form) << " activation " << static_cast<int>(activation);
      }
    }
  }
}

TEST_P(Narrow, PartsTogetherOnAnyNumberOfThreadsEqualEachAlone) {
  constexpr std::int64_t kK = 96, kM = 40;
  const auto x = normal_numbers(kM * kK, 8);
  for (const NarrowType form : kForms) {
    if (!multiplies(form)) continue;
    const std::int64_t sizes[] = {70, 33, 600};
    std::vector<NarrowMatrix> matrices;
    for (const auto N : sizes)
      matrices.emplace_back(
          form, WeightType::f32,
          random_weights(WeightType::f32, N * kK, static_cast<unsigned>(N)).bytes.data(), N, kK);
    std::vector<std::vector<float>> alone;
    for (const int threads : {1, 2, 3}) {
      at::set_num_threads(threads);
      std::vector<std::vector<float>> together;
      std::vector<NarrowPart> parts;
      for (const auto N : sizes) together.emplace_back(kM * N, kNan);
      for (std::size_t i = 0; i < 3; ++i)
        parts.push_back({&matrices[i], nullptr, Activation::gelu, together[i].data(), sizes[i]});
      if (alone.empty()) {
        alone = together;
        for (std::size_t i = 0; i < 3; ++i) {
          auto part = parts[i];
          part.y = alone[i].data();
          multiply({&part, 1}, x.data(), kM, kK, kK);
        }
      }
      multiply(parts, x.data(), kM, kK, kK);
      EXPECT_EQ(together, alone) << name(form) << ", " << threads << " threads";
    }
  }
}

TEST_P(Narrow, ZeroAndBrokenRows) {
  constexpr std::int64_t kK = 128, kN = 20;
  for (const NarrowType form : kForms) {
    if (!multiplies(form)) continue;
    const Weights w = random_weights(WeightType::f32, kN * kK, 9);
    const NarrowMatrix matrix(form, WeightType::f32, w.bytes.data(), kN, kK);
    for (const std::int64_t place : {40, 41, 42, 43}) {  // in any of the groups that share a scale
      std::vector<float> x(3 * kK, 0.f), y(3 * kN, kNan);
      x[static_cast<std::size_t>(kK + place)] = kNan;
      const NarrowPart part{&matrix, nullptr, Activation::none, y.data(), kN};
      multiply({&part, 1}, x.data(), 3, kK, kK);
      for (std::size_t i = 0; i < y.size(); ++i) {
        if (i >= kN && i < 2 * kN) {
          EXPECT_TRUE(std::isnan(y[i])) << name(form) << ": a broken number must not vanish";
        } else {
          EXPECT_EQ(y[i], 0.f) << name(form);
        }
      }
    }
  }
}

TEST_P(Narrow, NothingPastTheWeightsIsRead) {
  for (const NarrowType form : kForms) {
    if (!multiplies(form)) continue;
    for (const std::int64_t K : {1, 33, 64}) {
      const Weights w = random_weights(WeightType::f16, 5 * K, 10);
      const AtTheEnd mapped(w.bytes);
      const NarrowMatrix matrix(form, WeightType::f16, mapped.data(), 5, K);
      EXPECT_GT(matrix.bytes(), 0);
    }
  }
}

TEST_P(Narrow, ShapesThatDoNotFitAreRefused) {
  const Bytes bytes(4096, 0);
  for (const NarrowType form : kForms) {
    EXPECT_THROW(NarrowMatrix(form, WeightType::q8_0, bytes.data(), 1, 32), Error);
    EXPECT_THROW(NarrowMatrix(form, WeightType::f32, bytes.data(), -1, 32), Error);
    if (!multiplies(form)) {
      if (level() != Level::avx512) {
        EXPECT_THROW(NarrowMatrix(form, WeightType::f32, bytes.data(), 1, 32), Error) << name(form);
      }
      continue;
    }
    const NarrowMatrix matrix(form, WeightType::f32, bytes.data(), 4, 32);
    float x[64] = {}, y[8];
    const NarrowPart part{&matrix, nullptr, Activation::none, y, 4};
    EXPECT_THROW(multiply({&part, 1}, x, 2, 31, 31), Error);
    EXPECT_THROW(multiply({&part, 1}, x, -1, 32, 32), Error);
    EXPECT_THROW(multiply({&part, 1}, x, 2, 32, 16), Error);
    const NarrowPart tight{&matrix, nullptr, Activation::none, y, 3};
    EXPECT_THROW(multiply({&tight, 1}, x, 2, 32, 32), Error);
  }
}

}  // namespace
}  // namespace mneme::kernels
