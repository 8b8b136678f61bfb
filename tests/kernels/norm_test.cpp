#include "mneme/kernels/norm.h"

#include "mneme/core/error.h"

#include "at_level.h"

namespace mneme::kernels {
namespace {

class RmsNorm : public AtLevel {};

TEST_P(RmsNorm, EqualsTheFormulaOverEveryTail) {
  constexpr float kEps = 1e-5f;
  for (std::int64_t width : {1, 3, 4, 7, 8, 15, 16, 17, 31, 33, 48, 576}) {
    for (std::int64_t rows : {0, 1, 3, 70}) {
      for (const bool adds : {false, true}) {
        auto x = normal_numbers(rows * width, 1);
        const auto addend = normal_numbers(rows * width, 2), weight = normal_numbers(width, 3);
        std::vector<double> want, sums;
        for (std::int64_t r = 0; r < rows; ++r) {
          double squares = 0;
          for (std::int64_t i = 0; i < width; ++i) {
            const auto at = static_cast<std::size_t>(r * width + i);
            sums.push_back(adds ? x[at] + addend[at] : x[at]);
            squares += sums.back() * sums.back();
          }
          for (std::int64_t i = 0; i < width; ++i) {
            want.push_back(sums[static_cast<std::size_t>(r * width + i)] *
                           weight[static_cast<std::size_t>(i)] /
                           std::sqrt(squares / static_cast<double>(width) + kEps));
          }
        }
        std::vector<float> out(x.size());
        rms_norm(x.data(), adds ? addend.data() : nullptr, weight.data(), kEps, rows, width,
                 out.data());
        EXPECT_LT(relative_error(out, want), 1e-6) << width << " x " << rows;
        EXPECT_LT(relative_error(x, sums), 1e-7) << width << " x " << rows;
      }
    }
  }
}

TEST_P(RmsNorm, NotANumberStaysInItsRow) {
  constexpr std::int64_t kWidth = 19;
  auto x = normal_numbers(3 * kWidth, 1);
  x[kWidth + 18] = kNan;
  const std::vector<float> weight(kWidth, 1.f);
  std::vector<float> out(x.size());
  rms_norm(x.data(), nullptr, weight.data(), 1e-5f, 3, kWidth, out.data());
  for (std::size_t i = 0; i < out.size(); ++i)
    EXPECT_EQ(std::isnan(out[i]), i >= kWidth && i < 2 * kWidth) << i;
}

TEST_P(RmsNorm, RefusesNegativeShapes) {
  EXPECT_THROW(rms_norm(nullptr, nullptr, nullptr, 1e-5f, -1, 4, nullptr), Error);
  EXPECT_THROW(rms_norm(nullptr, nullptr, nullptr, 1e-5f, 1, -4, nullptr), Error);
}

MNEME_AT_EVERY_LEVEL(RmsNorm);

class LayerNorm : public AtLevel {};

TEST_P(LayerNorm, EqualsTheFormulaOverEveryTail) {
  constexpr float kEps = 1e-12f;
  for (std::int64_t width : {1, 3, 4, 7, 8, 15, 16, 17, 33, 384}) {
    for (std::int64_t rows : {0, 1, 3, 70}) {
      for (const bool adds : {false, true}) {
        auto x = normal_numbers(rows * width, 1, 3.f);
        const auto addend = normal_numbers(rows * width, 2), weight = normal_numbers(width, 3),
                   bias = normal_numbers(width, 4);
        std::vector<double> want;
        for (std::int64_t r = 0; r < rows; ++r) {
          std::vector<double> v;
          double mean = 0, variance = 0;
          for (std::int64_t i = 0; i < width; ++i) {
            const auto at = static_cast<std::size_t>(r * width + i);
            v.push_back(adds ? x[at] + addend[at] : x[at]);
            mean += v.back() / static_cast<double>(width);
          }
          for (const double each : v)
            variance += (each - mean) * (each - mean) / static_cast<double>(width);
          for (std::size_t i = 0; i < v.size(); ++i) {
            const double normed = width == 1 ? 0 : (v[i] - mean) / std::sqrt(variance + kEps);
            want.push_back(normed * weight[i] + bias[i]);
          }
        }
        std::vector<float> out(x.size(), kNan);
        const auto* more = adds ? addend.data() : nullptr;
        layer_norm(x.data(), more, weight.data(), bias.data(), kEps, rows, width, out.data());
        EXPECT_LT(relative_error(out, want), 2e-6) << width << " x " << rows;
        layer_norm(x.data(), more, weight.data(), bias.data(), kEps, rows, width, x.data());
        EXPECT_EQ(x, out) << "in place";
      }
    }
  }
}

TEST_P(LayerNorm, AFarMeanCostsNoDigits) {
  auto x = normal_numbers(64, 1);
  const std::vector<float> weight(64, 1.f), bias(64, 0.f);
  std::vector<float> near(64), far(64);
  layer_norm(x.data(), nullptr, weight.data(), bias.data(), 1e-12f, 1, 64, near.data());
  for (auto& each : x) each += 1000;
  layer_norm(x.data(), nullptr, weight.data(), bias.data(), 1e-12f, 1, 64, far.data());
  EXPECT_LT(relative_error(far, near), 1e-3);
}

TEST_P(LayerNorm, RefusesNegativeShapes) {
  EXPECT_THROW(layer_norm(nullptr, nullptr, nullptr, nullptr, 1e-5f, -1, 4, nullptr), Error);
}

MNEME_AT_EVERY_LEVEL(LayerNorm);

}  // namespace
}  // namespace mneme::kernels
