#include "mneme/decode/distribution.h"

#include "mneme/core/error.h"
#include "mneme/kernels/attend.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace mneme::decode {
namespace {

[[noreturn]] void refuse_logits() {
  throw Error(Errc::invalid,
              "the model's logits are not finite: its weights are damaged or a product overflowed");
}

}  // namespace

std::size_t index_of_largest(std::span<const float> logits) {
  if (logits.empty()) throw Error(Errc::invalid, "there are no logits to choose a token from");
  constexpr std::size_t kLanes = 16;  // side by side, so that the compiler compares many at once
  std::array<float, kLanes> largest;
  std::array<std::int32_t, kLanes> bad{};
  largest.fill(-std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      const float x = logits[i + j];
      largest[j] = x > largest[j] ? x : largest[j];
      bad[j] |= x != x;
    }
  }
  for (; i < logits.size(); ++i) {
    largest[0] = std::max(largest[0], logits[i]);
    bad[0] |= std::isnan(logits[i]);
  }
  if (std::any_of(bad.begin(), bad.end(), [](auto b) { return b != 0; })) refuse_logits();
  const float most = *std::max_element(largest.begin(), largest.end());
  return static_cast<std::size_t>(std::find(logits.begin(), logits.end(), most) - logits.begin());
}

void weights(std::span<const float> logits, float largest, std::span<float> out) {
  constexpr std::size_t kPart =
      4096;  // stays in the first cache, and is too little to be shared among threads
  for (std::size_t begin = 0; begin < logits.size(); begin += kPart) {
    const auto n = std::min(kPart, logits.size() - begin);
    const float* x = logits.data() + begin;
    float* y = out.data() + begin;
    // Subnormal numbers would be a hundred times slower: forbidden tokens stop at e^-80 = 1.8e-35 on their way to 0.
    for (std::size_t i = 0; i < n; ++i) y[i] = x[i] - largest < -80.f ? -80.f : x[i] - largest;
    kernels::exp(y, y, static_cast<std::int64_t>(n));
    for (std::size_t i = 0; i < n; ++i) y[i] = y[i] < 2e-35f ? 0.f : y[i];
  }
}

double log_sum_exp(std::span<const float> logits, float largest) {
  if (!std::isfinite(largest)) refuse_logits();
  std::array<float, 1024> part;
  double sum = 0;
  for (std::size_t begin = 0; begin < logits.size(); begin += part.size()) {
    const auto n = std::min(part.size(), logits.size() - begin);
    weights(logits.subspan(begin, n), largest, part);
    std::fill(part.begin() + static_cast<std::ptrdiff_t>(n), part.end(), 0.f);
    std::array<double, 8> lanes{};
    for (std::size_t i = 0; i < part.size(); i += lanes.size()) {
      for (std::size_t j = 0; j < lanes.size(); ++j) lanes[j] += part[i + j];
    }
    for (const auto lane : lanes) sum += lane;
  }
  const double out = static_cast<double>(largest) + std::log(sum);
  if (!std::isfinite(out)) refuse_logits();
  return out;
}

}  // namespace mneme::decode
