// A layer made up for tests of KV stages, and what a stage scores of it.
#pragma once

#include "mneme/core/registry.h"
#include "mneme/kv/head_profile.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

#include "../tensor_check.h"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace mneme::check {

using Numbers = std::vector<double>;
using Indices = std::vector<std::int64_t>;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// x turned to a position: channels i and i + d/2 together.
inline Numbers rotated(const Numbers& x, double position, double theta) {
  Numbers out(x.size());
  const auto half = x.size() / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const auto angle =
        position * std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(x.size()));
    out[i] = x[i] * std::cos(angle) - x[i + half] * std::sin(angle);
    out[i + half] = x[i + half] * std::cos(angle) + x[i] * std::sin(angle);
  }
  return out;
}

inline Numbers numbers(const at::Tensor& x) {
  const auto y = x.to(at::kDouble).contiguous();
  return {y.const_data_ptr<double>(), y.const_data_ptr<double>() + y.numel()};
}

inline at::Tensor rows(const std::vector<std::vector<float>>& of) {
  std::vector<at::Tensor> out;
  for (const auto& row : of) out.push_back(at::tensor(row));
  return at::stack(out);
}

inline double dot(const Numbers& a, const Numbers& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

inline Numbers softmax(Numbers z) {
  const auto most = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (auto& x : z) sum += x = std::exp(x - most);
  for (auto& x : z) x /= sum;
  return z;
}

/// One layer whose heads hold the tokens given, at the positions of the same number; the last w tokens ask.
class Made final : public LayerView {
 public:
  static constexpr std::int64_t kWidth = 6;
  static constexpr double kTheta = 50;

  Made(std::vector<Indices> tokens, std::int64_t w, std::uint64_t seed, std::int64_t G = 2)
      : tokens_(std::move(tokens)) {
    layer = 1;
    layers = 3;
    heads = static_cast<std::int64_t>(tokens_.size());
    group = G;
    scale = 0.7;
    std::int64_t last = 0;
    for (const auto& of_head : tokens_) last = std::max(last, of_head.back());
    moment = {last + 1, last + 1, false};
    for (std::int64_t i = 0; i < w; ++i) query_positions_.push_back(last + 1 - w + i);
    for (std::size_t h = 0; h < tokens_.size(); ++h) {
      const auto N = static_cast<std::int64_t>(tokens_[h].size());
      k.push_back(check::normal({N, kWidth}, ++seed * 100));
      v.push_back(check::normal({N, kWidth}, ++seed * 100));
      q.push_back(check::normal({G, w, kWidth}, ++seed * 100));
      sums.push_back(check::normal({G, N}, ++seed * 100).abs());
      again.push_back(at::full({N}, kNan));
      ids.push_back(at::full({N}, -1, at::kLong));
    }
  }

  [[nodiscard]] HeadView head(std::int64_t h) const override {
    return {layer, row, h, of(tokens_, h), of(tokens_, h)};
  }
  [[nodiscard]] at::Tensor keys(std::int64_t h) const override { return of(k, h).clone(); }
  [[nodiscard]] at::Tensor values(std::int64_t h) const override { return of(v, h).clone(); }
  [[nodiscard]] at::Tensor unrotated_keys(std::int64_t h) const override {
    auto back = of(tokens_, h);
    for (auto& position : back) position = -position;
    return turned(of(k, h), back);
  }
  [[nodiscard]] at::Tensor turned(const at::Tensor& x, const Indices& positions) const override {
    auto out = at::empty_like(x);
    for (std::int64_t i = 0; i < x.size(0); ++i) {
      const auto position = static_cast<double>(positions[static_cast<std::size_t>(i)]);
      out[i].copy_(at::tensor(rotated(numbers(x[i]), position, kTheta)));
    }
    return out;
  }
  [[nodiscard]] at::Tensor queries(std::int64_t h) const override { return of(q, h).clone(); }
  [[nodiscard]] const Indices& query_positions() const override { return query_positions_; }
  [[nodiscard]] at::Tensor window_weights(std::int64_t h, std::int64_t count) const override {
    const auto all = static_cast<std::int64_t>(query_positions_.size()), w = std::min(count, all),
               N = of(k, h).size(0);
    auto out = at::zeros({group, w, N});
    for (std::int64_t g = 0; g < group; ++g) {
      for (std::int64_t i = 0; i < w; ++i) {
        Numbers z;
        std::vector<std::int64_t> seen;
        for (std::int64_t j = 0; j < N; ++j) {
          if (of(tokens_, h)[static_cast<std::size_t>(j)] >
              query_positions_[static_cast<std::size_t>(all - w + i)])
            continue;
          seen.push_back(j);
          z.push_back(scale * dot(numbers(of(q, h)[g][all - w + i]), numbers(of(k, h)[j])));
        }
        const auto a = softmax(z);
        for (std::size_t j = 0; j < seen.size(); ++j) out[g][i][seen[j]] = a[j];
      }
    }
    return out;
  }
  [[nodiscard]] at::Tensor column_sums(std::int64_t h) const override {
    return of(sums, h).clone();
  }
  [[nodiscard]] at::Tensor reconstruction_weights(std::int64_t h) const override {
    return of(again, h).clone();
  }
  [[nodiscard]] at::Tensor token_ids(std::int64_t h) const override { return of(ids, h).clone(); }

  std::vector<at::Tensor> k, v, q, sums, again, ids;  // of each head

 private:
  template <class T>
  static const T& of(const std::vector<T>& all, std::int64_t h) {
    return all[static_cast<std::size_t>(h)];
  }
  std::vector<Indices> tokens_;
  Indices query_positions_;
};

inline Indices count_to(std::int64_t n) {
  Indices out(static_cast<std::size_t>(n));
  std::iota(out.begin(), out.end(), 0);
  return out;
}

/// Two heads that hold all of n tokens.
inline Made whole(std::int64_t n, std::int64_t w, std::uint64_t seed = 3) {
  return {{count_to(n), count_to(n)}, w, seed};
}

inline std::vector<at::Tensor> scores(const std::string& spec, const LayerView& layer,
                                      const HeadProfile* profile = nullptr) {
  const auto stage = registry().make<KvStage>(spec);
  if (profile) stage->calibrate(*profile);
  auto out = dynamic_cast<const ScoreStage&>(*stage).score(layer);
  EXPECT_EQ(out.size(), static_cast<std::size_t>(layer.heads));
  for (std::int64_t h = 0; h < layer.heads; ++h) {
    const auto& of_head = out[static_cast<std::size_t>(h)];
    EXPECT_EQ(of_head.scalar_type(), at::kFloat);
    EXPECT_EQ(of_head.sizes(), at::IntArrayRef({layer.head(h).entries()}));
  }
  return out;
}

inline void expect_near(const at::Tensor& got, const Numbers& want, const std::string& what = "") {
  ASSERT_EQ(got.numel(), static_cast<std::int64_t>(want.size())) << what;
  const auto x = numbers(got);
  for (std::size_t j = 0; j < want.size(); ++j) {
    if (std::isinf(want[j])) {
      EXPECT_EQ(x[j], want[j]) << what << " entry " << j;
    } else {
      EXPECT_NEAR(x[j], want[j], 1e-5 * std::max(1.0, std::abs(want[j]))) << what << " entry " << j;
    }
  }
}

}  // namespace mneme::check
