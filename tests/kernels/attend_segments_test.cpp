#include "mneme/kernels/attend_segments.h"

#include "mneme/core/error.h"
#include "mneme/kernels/kernel_table.h"

#include <ATen/Parallel.h>

#include "at_level.h"

namespace mneme::kernels {
namespace {

class AttendSegments : public AtLevel {
 protected:
  void TearDown() override {
    at::set_num_threads(1);
    AtLevel::TearDown();
  }
};
MNEME_AT_EVERY_LEVEL(AttendSegments);

// Rows of several segments one after another, [rows,heads,d] as projections give them.
struct Packed {
  std::int64_t heads, kv_heads, d, rows = 0;
  std::vector<std::int64_t> lengths;
  std::vector<float> q, k, v;

  Packed(std::int64_t heads_, std::int64_t kv_heads_, std::int64_t d_,
         std::vector<std::int64_t> lengths_)
      : heads(heads_), kv_heads(kv_heads_), d(d_), lengths(std::move(lengths_)) {
    for (const auto n : lengths) rows += n;
    q = normal_numbers(rows * heads * d, 1);
    k = normal_numbers(rows * kv_heads * d, 2);
    v = normal_numbers(rows * kv_heads * d, 3);
  }

  [[nodiscard]] std::vector<float> run(float scale, Products products) const {
    std::vector<float> out(q.size(), kNan);
    std::vector<SegmentTask> tasks;
    std::int64_t at = 0;
    for (const auto n : lengths) {
      tasks.push_back({q.data() + at * heads * d, k.data() + at * kv_heads * d,
                       v.data() + at * kv_heads * d, out.data() + at * heads * d, n});
      at += n;
    }
    const SegmentShape shape{heads, kv_heads,     d, d,        heads * d, d, kv_heads * d,
                             d,     kv_heads * d, d, heads * d};
    attend_segments(tasks, shape, scale, products);
    return out;
  }

  [[nodiscard]] std::vector<double> oracle(double scale) const {
    std::vector<double> out;
    std::int64_t begin = 0;
    const auto number = [&](const std::vector<float>& x, std::int64_t t, std::int64_t h,
                            std::int64_t of, std::int64_t i) {
      return static_cast<double>(x[static_cast<std::size_t>((t * of + h) * d + i)]);
    };
    for (const auto n : lengths) {
      for (std::int64_t t = begin; t < begin + n; ++t) {
        for (std::int64_t h = 0; h < heads; ++h) {
          const std::int64_t g = h / (heads / kv_heads);
          std::vector<double> weights;
          double total = 0;
          for (std::int64_t e = begin; e < begin + n; ++e) {
            double score = 0;
            for (std::int64_t i = 0; i < d; ++i)
              score += number(q, t, h, heads, i) * number(k, e, g, kv_heads, i);
            weights.push_back(std::exp(scale * score));
            total += weights.back();
          }
          for (std::int64_t i = 0; i < d; ++i) {
            double sum = 0;
            for (std::int64_t e = 0; e < n; ++e)
              sum += weights[static_cast<std::size_t>(e)] * number(v, begin + e, g, kv_heads, i);
            out.push_back(sum / total);
          }
        }
      }
      begin += n;
    }
    return out;
  }
};

TEST_P(AttendSegments, EqualsTheFormulaOverEveryTail) {
  for (const auto& [heads, kv_heads] :
       {std::pair<std::int64_t, std::int64_t>{1, 1}, {12, 12}, {6, 2}}) {
    for (const std::int64_t d : {1, 8, 20, 32, 64, 72}) {
      const Packed packed(heads, kv_heads, d, {1, 2, 0, 7, 15, 16, 17, 31, 33, 63, 64, 65, 130});
      const float scale = 1.f / std::sqrt(static_cast<float>(d));
      const auto want = packed.oracle(scale);
      for (const Products products : {Products::f32, Products::bf16}) {
        const bool rounds = products == Products::bf16 && table().attend_segment_bf16 != nullptr;
        EXPECT_LT(relative_error(packed.run(scale, products), want), rounds ? 2e-2 : 2e-6)
            << heads << " heads, d " << d << (rounds ? ", bf16" : "");
      }
    }
  }
}

TEST_P(AttendSegments, ManyThreadsGiveTheSame) {
  const Packed packed(2, 1, 32, {300, 5, 120});
  at::set_num_threads(1);
  const auto alone = packed.run(0.2f, Products::f32);
  for (const int threads : {2, 3}) {
    at::set_num_threads(threads);
    EXPECT_EQ(packed.run(0.2f, Products::f32), alone) << threads;
  }
}

TEST_P(AttendSegments, LargeScoresStayFinite) {
  Packed packed(1, 1, 16, {40});
  for (auto& x : packed.q) x *= 100;
  for (const float x : packed.run(1.f, Products::f32)) EXPECT_TRUE(std::isfinite(x));
}

TEST_P(AttendSegments, ShapesThatDoNotFitAreRefused) {
  const SegmentTask negative{nullptr, nullptr, nullptr, nullptr, -1};
  EXPECT_THROW(attend_segments({&negative, 1}, {1, 1, 8}, 1.f), Error);
  EXPECT_THROW(attend_segments({}, {3, 2, 8}, 1.f), Error);
  EXPECT_THROW(attend_segments({}, {2, 0, 8}, 1.f), Error);
  EXPECT_THROW(attend_segments({}, {2, 2, 0}, 1.f), Error);
}

}  // namespace
}  // namespace mneme::kernels
