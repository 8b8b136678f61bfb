#include "mneme/kernels/low_rank.h"

#include "mneme/core/error.h"
#include "mneme/kernels/quantized.h"

#include <ATen/Parallel.h>

#include "at_level.h"
#include "half.h"
#include "random_weights.h"
#include <gtest/gtest.h>
#include <utility>

namespace mneme::kernels {
namespace {

constexpr WeightType kPlain[] = {WeightType::f32, WeightType::f16, WeightType::bf16};

// A random update of a matrix [N,K], as kernels read it and as numbers.
struct Update {
  Weights a, b;
  Bytes packed;
  LowRankPart part{};

  Update(WeightType type, std::int64_t N, std::int64_t K, std::int64_t rank, unsigned seed)
      : a(random_weights(type, rank * K, seed)),
        b(random_weights(type, N * rank, seed + 1)),
        packed(static_cast<std::size_t>(packed_low_rank_numbers(N, rank) * block_bytes(type))) {
    pack_low_rank(type, b.bytes.data(), N, rank, packed.data());
    part = {type, a.bytes.data(), packed.data(), rank, 0.375f};
  }
  Update(Update&&) = default;
};

// What an update adds, in double precision, and the sums of the sizes of its terms.
struct Added {
  std::vector<double> y, size;

  Added(const Update& u, const std::vector<float>& x, std::int64_t M, std::int64_t K,
        std::int64_t N)
      : y(static_cast<std::size_t>(M * N)), size(y) {
    const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
    for (std::int64_t m = 0; m < M; ++m) {
      for (std::int64_t i = 0; i < u.part.rank; ++i) {
        double t = 0, t_size = 0;
        for (std::int64_t k = 0; k < K; ++k) {
          const double term = x[at(m * K + k)] * u.a.numbers[at(i * K + k)];
          t += term;
          t_size += std::fabs(term);
        }
        for (std::int64_t n = 0; n < N; ++n) {
          const double b = u.part.scale * u.b.numbers[at(n * u.part.rank + i)];
          y[at(m * N + n)] += t * b;
          size[at(m * N + n)] += t_size * std::fabs(b);
        }
      }
    }
  }
};

class LowRankKernels : public AtLevel {};
MNEME_AT_EVERY_LEVEL(LowRankKernels);

TEST(LowRankPacking, PutsSixteenRowsTogetherColumnByColumn) {
  constexpr std::int64_t kN = 18, kRank = 2;
  EXPECT_EQ(packed_low_rank_numbers(kN, kRank), 64);
  EXPECT_EQ(packed_low_rank_numbers(0, kRank), 0);
  std::vector<float> b, packed(64, kNan);
  for (std::int64_t n = 0; n < kN; ++n) b.insert(b.end(), {1.f * n, 100.f + n});
  pack_low_rank(WeightType::f32, b.data(), kN, kRank, packed.data());
  EXPECT_EQ(packed[0], 0.f);
  EXPECT_EQ(packed[15], 15.f);
  EXPECT_EQ(packed[16], 100.f);
  EXPECT_EQ(packed[31], 115.f);
  EXPECT_EQ(packed[32], 16.f);
  EXPECT_EQ(packed[33], 17.f);
  EXPECT_EQ(packed[34], 0.f) << "past the last row";
  EXPECT_EQ(packed[49], 117.f);
  EXPECT_EQ(packed[63], 0.f);
}

TEST_P(LowRankKernels, ProductsOfFewRows) {
  for (const auto& [weight, update] : {std::pair{WeightType::q4_1, WeightType::f16},
                                       {WeightType::q8_0, WeightType::f32},
                                       {WeightType::q4_0, WeightType::bf16},
                                       {WeightType::f16, WeightType::f16}}) {
    for (const std::int64_t rank : {1, 3, 12, 16, 33, 64}) {
      for (const std::int64_t N : {1, 15, 16, 17, 67}) {
        for (const std::int64_t M : {1, 2, 3, 4, 7, 8}) {
          const std::int64_t K = rank == 12 ? 544 : 96;
          const Weights w = random_weights(weight, N * K, 40);
          const Update u(update, N, K, rank, 41);
          const auto x = normal_numbers(M * K, 43);
          const Added want(u, x, M, K, N);
          const auto matrix = packed(weight, w, K);
          for (const auto activations : {Activations::q8, Activations::f32}) {
            std::vector<float> y(static_cast<std::size_t>(M * N), kNan), plain(y);
            MatvecPart part{weight, w.bytes.data(), N, plain.data(), N, {}, matrix.get()};
            matvec({&part, 1}, x.data(), M, K, activations);
            part.y = y.data();
            part.low_rank = {&u.part, 1};
            matvec({&part, 1}, x.data(), M, K, activations);
            for (std::size_t i = 0; i < y.size(); ++i) {
              ASSERT_NEAR(y[i], plain[i] + want.y[i], 1e-6 * (want.size[i] + std::fabs(plain[i])))
                  << name(weight) << " + " << name(update) << " rank " << rank << " N " << N
                  << " M " << M << " at " << i;
            }
          }
        }
      }
    }
  }
}

TEST_P(LowRankKernels, SeveralUpdatesOfSeveralPartsOnAnyNumberOfThreads) {
  constexpr std::int64_t kK = 576, kM = 2;
  const auto x = normal_numbers(kM * kK, 50);
  const std::int64_t sizes[] = {200, 64, 333};
  std::vector<Weights> weights;
  std::vector<std::unique_ptr<PackedMatrix>> matrices;
  std::vector<std::vector<Update>> updates(3);
  std::vector<std::vector<LowRankPart>> low_rank(3);
  for (std::size_t i = 0; i < 3; ++i) {
    weights.push_back(random_weights(WeightType::q4_1, sizes[i] * kK, static_cast<unsigned>(i)));
    matrices.push_back(packed(WeightType::q4_1, weights[i], kK));
    // The second part has none.
    for (std::size_t j = 0; j < (i == 1 ? 0 : i + 1); ++j) {
      updates[i].emplace_back(kPlain[(i + j) % 3], sizes[i], kK,
                              static_cast<std::int64_t>(5 + 7 * j),
                              static_cast<unsigned>(60 + 2 * (3 * i + j)));
    }
    for (const auto& u : updates[i]) low_rank[i].push_back(u.part);
  }
  std::vector<std::vector<float>> first;
  // More threads than cores: some wait for t while others are not running.
  for (const int threads : {1, 2, 3, 16}) {
    at::set_num_threads(threads);
    for (int round = 0; round < 20; ++round) {
      std::vector<std::vector<float>> y, plain;
      std::vector<MatvecPart> parts;
      for (std::size_t i = 0; i < 3; ++i) {
        y.emplace_back(kM * sizes[i], kNan);
        plain.emplace_back(kM * sizes[i], kNan);
        matvec(WeightType::q4_1, weights[i].bytes.data(), sizes[i], kK, x.data(), kM,
               plain[i].data());
      }
      for (std::size_t i = 0; i < 3; ++i) {
        parts.push_back({WeightType::q4_1, weights[i].bytes.data(), sizes[i], y[i].data(), sizes[i],
                         low_rank[i], matrices[i].get()});
      }
      matvec(parts, x.data(), kM, kK);
      if (first.empty()) {
        for (std::size_t i = 0; i < 3; ++i) {
          std::vector<double> want(plain[i].begin(), plain[i].end()), size(want.size());
          for (const auto& u : updates[i]) {
            const Added added(u, x, kM, kK, sizes[i]);
            for (std::size_t j = 0; j < want.size(); ++j)
              want[j] += added.y[j], size[j] += added.size[j];
          }
          for (std::size_t j = 0; j < want.size(); ++j)
            ASSERT_NEAR(y[i][j], want[j], 1e-6 * (size[j] + std::fabs(want[j]))) << i << " " << j;
        }
        first = y;
      }
      ASSERT_EQ(y, first) << threads << " threads, round " << round;
    }
  }
  at::set_num_threads(1);
}

TEST_P(LowRankKernels, RowsApartLeaveTheGapAlone) {
  constexpr std::int64_t kK = 64, kN = 18, kM = 3, kStride = 21;
  const Weights w = random_weights(WeightType::q4_1, kN * kK, 70);
  const Update u(WeightType::f16, kN, kK, 3, 71);
  const auto x = normal_numbers(kM * kK, 72);
  std::vector<float> y(kM * kStride, -3.f), tight(kM * kN);
  const auto matrix = packed(WeightType::q4_1, w, kK);
  MatvecPart part{WeightType::q4_1, w.bytes.data(), kN,          y.data(),
                  kStride,          {&u.part, 1},   matrix.get()};
  matvec({&part, 1}, x.data(), kM, kK);
  part.y = tight.data();
  part.y_stride = kN;
  matvec({&part, 1}, x.data(), kM, kK);
  for (std::int64_t m = 0; m < kM; ++m) {
    for (std::int64_t n = 0; n < kStride; ++n) {
      EXPECT_EQ(y[static_cast<std::size_t>(m * kStride + n)],
                n < kN ? tight[static_cast<std::size_t>(m * kN + n)] : -3.f);
    }
  }
}

TEST_P(LowRankKernels, AddingToProductsMadeElsewhere) {
  for (const auto type : kPlain) {
    for (const std::int64_t M : {0, 1, 7, 8, 9, 20, 70}) {
      for (const std::int64_t K : {0, 1, 5, 40, 1100}) {
        constexpr std::int64_t kN = 19;
        const Update one(type, kN, K, 2, 80), two(WeightType::f32, kN, K, 17, 82);
        const LowRankPart parts[] = {one.part, two.part};
        const auto x = normal_numbers(M * K, 84);
        auto y = normal_numbers(M * kN, 85);
        const auto before = y;
        add_low_rank(parts, x.data(), M, K, y.data(), kN, kN);
        const Added first(one, x, M, K, kN), second(two, x, M, K, kN);
        for (std::size_t i = 0; i < y.size(); ++i) {
          const double size = first.size[i] + second.size[i] + std::fabs(before[i]);
          ASSERT_NEAR(y[i], before[i] + first.y[i] + second.y[i], 1e-6 * size) << M << " " << K;
        }
      }
    }
  }
}

TEST_P(LowRankKernels, BothSidesOfAProductOfManyRows) {
  // [x | x A'] [W | s B]' = x W' + s x A' B', with columns of zeros behind.
  constexpr std::int64_t kK = 64, kN = 37, kM = 21, kColumns = kK + 32, kStride = kColumns + 3;
  for (const auto type : kPlain) {
    const Weights w = random_weights(WeightType::q4_1, kN * kK, 90);
    const Update one(type, kN, kK, 12, 91), two(WeightType::f16, kN, kK, 3, 93);
    const LowRankPart parts[] = {one.part, two.part};
    const auto x = normal_numbers(kM * kK, 95);
    std::vector<float> left(kM * kStride, -3.f);
    std::vector<std::uint16_t> narrow_left(left.size(), to_bf16(-3.f));
    low_rank_inputs_bf16(parts, x.data(), kM, kK, narrow_left.data() + kK, kColumns - kK, kStride);
    low_rank_inputs(parts, x.data(), kM, kK, left.data() + kK, kColumns - kK, kStride);
    std::vector<float> right(kN * kColumns, kNan), rows(kN * kK);
    std::vector<std::uint16_t> narrow(right.size(), 0x7fc0);
    dequantize(WeightType::q4_1, w.bytes.data(), kN, kK, rows.data());
    // In two pieces, as tiles of a large matrix are.
    dequantize_beside(WeightType::q4_1, w.bytes.data(), 0, 16, kK, parts, right.data(), kColumns);
    dequantize_beside(WeightType::q4_1, w.bytes.data(), 16, kN, kK, parts,
                      right.data() + 16 * kColumns, kColumns);
    dequantize_beside_bf16(WeightType::q4_1, w.bytes.data(), 0, kN, kK, parts, narrow.data(),
                           kColumns);
    const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
    for (std::int64_t n = 0; n < kN; ++n) {
      for (std::int64_t i = 0; i < kColumns; ++i) {
        float want = 0;
        if (i < kK) {
          want = rows[at(n * kK + i)];
        } else if (i < kK + 12) {
          want = 0.375f * static_cast<float>(one.b.numbers[at(n * 12 + i - kK)]);
        } else if (i < kK + 15) {
          want = 0.375f * static_cast<float>(two.b.numbers[at(n * 3 + i - kK - 12)]);
        }
        ASSERT_EQ(right[at(n * kColumns + i)], want) << n << " " << i;
        ASSERT_EQ(narrow[at(n * kColumns + i)], to_bf16(want)) << n << " " << i;
      }
    }
    for (std::int64_t m = 0; m < kM; ++m) {
      for (std::int64_t i = 0; i < kStride; ++i) {
        const float got = left[at(m * kStride + i)];
        ASSERT_EQ(narrow_left[at(m * kStride + i)], to_bf16(got)) << m << " " << i;
        if (i < kK || i >= kColumns) {
          ASSERT_EQ(got, -3.f) << "not its own: " << m << " " << i;
        } else if (i < kK + 15) {
          const auto& u = i < kK + 12 ? one : two;
          const std::int64_t row = i < kK + 12 ? i - kK : i - kK - 12;
          double want = 0, size = 0;
          for (std::int64_t k = 0; k < kK; ++k) {
            const double term = x[at(m * kK + k)] * u.a.numbers[at(row * kK + k)];
            want += term;
            size += std::fabs(term);
          }
          ASSERT_NEAR(got, want, 1e-6 * size) << m << " " << i;
        } else {
          ASSERT_EQ(got, 0.f) << m << " " << i;
        }
      }
    }
  }
}

TEST_P(LowRankKernels, MergedIntoTheWeight) {
  for (const auto type : kPlain) {
    for (const auto& [weight, K] : {std::pair{WeightType::q4_1, std::int64_t{96}},
                                    {WeightType::f32, 1},
                                    {WeightType::f16, 37}}) {
      for (const std::int64_t rank : {1, 12, 35}) {
        for (const std::int64_t N : {1, 16, 37}) {
          const Weights w = random_weights(weight, N * K, 130);
          const Update one(type, N, K, rank, 131), two(WeightType::bf16, N, K, 2, 133);
          const LowRankPart parts[] = {one.part, two.part};
          std::vector<float> out(static_cast<std::size_t>(N * K), kNan);
          // In two pieces, as tiles of a large matrix are.
          const std::int64_t cut = std::min<std::int64_t>(16, N);
          dequantize_merged(weight, w.bytes.data(), 0, cut, K, parts, out.data());
          if (cut < N)
            dequantize_merged(weight, w.bytes.data(), cut, N, K, parts, out.data() + cut * K);
          for (std::int64_t n = 0; n < N; ++n) {
            for (std::int64_t k = 0; k < K; ++k) {
              const auto at = static_cast<std::size_t>(n * K + k);
              double want = w.numbers[at], size = std::fabs(want);
              for (const Update* u : {&one, &two}) {
                for (std::int64_t i = 0; i < u->part.rank; ++i) {
                  const double term = 0.375 *
                                      u->b.numbers[static_cast<std::size_t>(n * u->part.rank + i)] *
                                      u->a.numbers[static_cast<std::size_t>(i * K + k)];
                  want += term;
                  size += std::fabs(term);
                }
              }
              ASSERT_NEAR(out[at], want, 1e-6 * size) << rank << " " << n << " " << k;
            }
          }
        }
      }
    }
  }
}

TEST_P(LowRankKernels, NothingPastAnUpdateIsRead) {
  constexpr std::int64_t kK = 32;
  for (const auto type : kPlain) {
    for (const std::int64_t rank : {1, 5, 12}) {
      for (const std::int64_t N : {1, 16, 33}) {
        const Weights w = random_weights(WeightType::q8_0, N * kK, 100);
        Update u(type, N, kK, rank, 101);
        const AtTheEnd a(u.a.bytes), b(u.packed);
        u.part.a = a.data();
        u.part.b = b.data();
        const auto x = normal_numbers(3 * kK, 103);
        std::vector<float> y(static_cast<std::size_t>(3 * N), kNan),
            wide(static_cast<std::size_t>((N + 3) * (kK + rank)));
        const auto matrix = packed(WeightType::q8_0, w, kK);
        const MatvecPart part{WeightType::q8_0, w.bytes.data(), N, y.data(), N,
                              {&u.part, 1},     matrix.get()};
        matvec({&part, 1}, x.data(), 3, kK);
        for (const float each : y) ASSERT_TRUE(std::isfinite(each));
        dequantize_beside(WeightType::q8_0, w.bytes.data(), 0, N, kK, {&u.part, 1}, wide.data(),
                          kK + rank);
        dequantize_merged(WeightType::q8_0, w.bytes.data(), 0, N, kK, {&u.part, 1}, wide.data());
        low_rank_inputs({&u.part, 1}, x.data(), 3, kK, wide.data(), rank, rank);
      }
    }
  }
}

TEST_P(LowRankKernels, BrokenActivationsReachTheResult) {
  constexpr std::int64_t kK = 64, kN = 5;
  const Weights w = random_weights(WeightType::q4_1, kN * kK, 110);
  const Update u(WeightType::f16, kN, kK, 3, 111);
  for (const float broken : {kNan, kInfinity}) {
    std::vector<float> x(kK, 0.f), y(kN, 0.f);
    x[40] = broken;
    add_low_rank({&u.part, 1}, x.data(), 1, kK, y.data(), kN, kN);
    for (const float each : y) EXPECT_FALSE(std::isfinite(each));
  }
}

TEST_P(LowRankKernels, RankZeroAndNoRowsChangeNothing) {
  constexpr std::int64_t kK = 32, kN = 4;
  const Update none(WeightType::f16, kN, kK, 0, 120), some(WeightType::f16, kN, kK, 2, 121);
  const Weights w = random_weights(WeightType::q4_1, kN * kK, 122);
  const auto x = normal_numbers(kK, 123);
  std::vector<float> y(kN, kNan), plain(kN, kNan);
  matvec(WeightType::q4_1, w.bytes.data(), kN, kK, x.data(), 1, plain.data());
  const auto matrix = packed(WeightType::q4_1, w, kK);
  MatvecPart part{WeightType::q4_1, w.bytes.data(), kN, y.data(), kN,
                  {&none.part, 1},  matrix.get()};
  matvec({&part, 1}, x.data(), 1, kK);
  EXPECT_EQ(y, plain);
  part.low_rank = {&some.part, 1};
  matvec({&part, 1}, x.data(), 0, kK);
  EXPECT_EQ(y, plain);
  low_rank_inputs({&some.part, 1}, x.data(), 0, kK, y.data(), 2, 2);
  EXPECT_EQ(y, plain);
}

TEST(LowRankRefusals, ShapesThatDoNotFit) {
  std::vector<float> x(64), y(64), wide(4096);
  const Bytes w(4096, 0);
  const LowRankPart good{WeightType::f32, x.data(), x.data(), 2, 1.f},
      quantized{WeightType::q8_0, w.data(), w.data(), 2, 1.f},
      negative{WeightType::f32, x.data(), x.data(), -2, 1.f};
  EXPECT_THROW((void)packed_low_rank_numbers(-1, 2), Error);
  EXPECT_THROW((void)packed_low_rank_numbers(std::int64_t{1} << 40, std::int64_t{1} << 40), Error);
  EXPECT_THROW(pack_low_rank(WeightType::q8_0, w.data(), 4, 2, y.data()), Error);
  for (const auto& bad : {quantized, negative}) {
    EXPECT_THROW((void)total_rank({&bad, 1}), Error);
    EXPECT_THROW(add_low_rank({&bad, 1}, x.data(), 1, 4, y.data(), 4, 4), Error);
    const MatvecPart part{WeightType::f32, w.data(), 4, y.data(), 4, {&bad, 1}};
    EXPECT_THROW(matvec({&part, 1}, x.data(), 1, 4), Error);
  }
  EXPECT_THROW(add_low_rank({&good, 1}, x.data(), 2, 4, y.data(), 4, 3), Error);
  EXPECT_THROW(add_low_rank({&good, 1}, x.data(), -1, 4, y.data(), 4, 4), Error);
  EXPECT_THROW(low_rank_inputs({&good, 1}, x.data(), 1, 4, y.data(), 1, 4), Error);
  EXPECT_THROW(low_rank_inputs({&good, 1}, x.data(), 2, 4, y.data(), 4, 3), Error);
  const auto beside = [&](std::int64_t begin, std::int64_t end, std::int64_t K,
                          std::int64_t columns) {
    dequantize_beside(WeightType::q8_0, w.data(), begin, end, K, {&good, 1}, wide.data(), columns);
  };
  EXPECT_THROW(beside(8, 16, 32, 64), Error);
  EXPECT_THROW(beside(16, 0, 32, 64), Error);
  EXPECT_THROW(beside(0, 16, 33, 64), Error);
  EXPECT_THROW(beside(0, 16, 32, 33), Error);
  EXPECT_THROW(dequantize_merged(WeightType::q8_0, w.data(), 8, 16, 32, {&good, 1}, wide.data()),
               Error);
}

}  // namespace
}  // namespace mneme::kernels
