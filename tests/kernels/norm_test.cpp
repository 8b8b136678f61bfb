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

}  // namespace
}  // namespace mneme::kernels
