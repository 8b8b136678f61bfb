// How the tests compare tensors, and reproducible inputs for them.
#pragma once

#include "mneme/core/error.h"
#include "mneme/core/generator.h"

#include <ATen/ATen.h>

#include <cstdint>
#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace mneme::check {

/// Root mean square of the difference over that of `want`; NaN or infinity anywhere gives infinity.
inline double rms_error(const at::Tensor& got, const at::Tensor& want) {
  const auto a = got.to(at::kDouble), b = want.to(at::kDouble);
  const auto value = (a - b).square().mean().sqrt() / b.square().mean().sqrt().clamp_min(1e-30);
  const auto out = value.item<double>();
  return std::isfinite(out) ? out : std::numeric_limits<double>::infinity();
}

/// One table for all tests: f64 1e-10, f32 1e-5, half precisions 2e-2.
inline double tolerance(at::ScalarType type) {
  return type == at::kDouble ? 1e-10 : type == at::kFloat ? 1e-5 : 2e-2;
}

/// Same sizes, and an RMS error of at most `most`.
inline ::testing::AssertionResult close(const at::Tensor& got, const at::Tensor& want,
                                        double most) {
  if (got.sizes() != want.sizes()) {
    return ::testing::AssertionFailure()
           << "sizes " << got.sizes() << " where " << want.sizes() << " are wanted";
  }
  if (got.numel() == 0) return ::testing::AssertionSuccess();
  const auto error = rms_error(got, want);
  if (error <= most) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "RMS error " << error << ", at most " << most;
}

/// The largest difference.
inline double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

/// The same bits.
inline ::testing::AssertionResult identical(const at::Tensor& got, const at::Tensor& want) {
  if (got.sizes() == want.sizes() && at::equal(got, want)) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "the bits differ";
}

/// Standard normal numbers that depend on the seed alone.
inline at::Tensor normal(at::IntArrayRef sizes, std::uint64_t seed,
                         at::ScalarType type = at::kFloat) {
  auto out = at::empty(sizes, at::kDouble);
  Generator generator(seed);
  for (std::int64_t i = 0; i < out.numel(); ++i) {
    out.mutable_data_ptr<double>()[i] = generator.normal();
  }
  return out.to(type);
}

/// Token ids [B,T] below `vocabulary`.
inline at::Tensor random_ids(std::int64_t B, std::int64_t T, std::int64_t vocabulary,
                             std::uint64_t seed) {
  auto out = at::empty({B, T}, at::kLong);
  Generator generator(seed);
  for (std::int64_t i = 0; i < out.numel(); ++i) {
    out.mutable_data_ptr<std::int64_t>()[i] = generator.next() % vocabulary;
  }
  return out;
}

/// Positions [B,T]: first, first + 1, ...
inline at::Tensor positions(std::int64_t B, std::int64_t T, std::int64_t first = 0) {
  return (at::arange(T, at::kLong) + first).expand({B, T}).contiguous();
}

/// Expects an Error of that code whose text is one line that holds `part`.
template <class Action>
void expect_error(Errc code, const std::string& part, Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return;
  }
  ADD_FAILURE() << "no error; expected one with: " << part;
}

/// A test name made of a spec: letters, digits and underscores only.
inline std::string test_name(std::string spec) {
  std::string out;
  for (char c : spec) {
    if (std::isalnum(static_cast<unsigned char>(c))) {
      out += c;
    } else if (!out.empty() && out.back() != '_') {
      out += '_';
    }
  }
  while (!out.empty() && out.back() == '_') out.pop_back();
  return out;
}

}  // namespace mneme::check
