#include "mneme/kernels/attend.h"

#include "mneme/core/error.h"
#include "mneme/kernels/codec.h"
#include "mneme/kernels/kernel_table.h"

#include <ATen/Parallel.h>

#include "at_level.h"
#include "half.h"
#include <gtest/gtest.h>
#include <memory>
#include <numeric>
#include <optional>
#include <thread>

namespace mneme::kernels {
namespace {

struct Encoding {
  NumberCodec keys, values;
};
constexpr Encoding kQ8{NumberCodec::group8, NumberCodec::group8},
    kQ4{NumberCodec::channel4, NumberCodec::group4};

// One KV head with its queries, laid out in pages of the given sizes.
struct Head {
  std::int64_t G, T, d, entries;
  std::vector<float> q;      // [G,T,d]
  std::vector<double> k, v;  // [entries,d], as stored
  std::vector<std::int64_t> q_positions, k_positions;
  std::vector<float> log_mass;  // empty or [entries]
  KvType type = KvType::f32;

  std::vector<std::vector<float>> wide;
  std::vector<std::vector<std::uint16_t>> narrow;
  std::vector<PageView> pages;
  std::vector<std::unique_ptr<AtTheEnd>> encoded;

  Head(std::int64_t G_, std::int64_t T_, std::int64_t d_, std::int64_t entries_, unsigned seed,
       KvType type_ = KvType::f32)
      : G(G_), T(T_), d(d_), entries(entries_), q(normal_numbers(G_ * T_ * d_, seed)), type(type_) {
    for (float x : normal_numbers(entries * d, seed + 1)) k.push_back(stored(x));
    for (float x : normal_numbers(entries * d, seed + 2)) v.push_back(stored(x));
    for (std::int64_t t = 0; t < T; ++t) q_positions.push_back(entries - T + t);
    for (std::int64_t e = 0; e < entries; ++e) k_positions.push_back(e);
  }

  [[nodiscard]] double stored(float x) const {
    if (type == KvType::f16) return from_half(to_half(x));
    if (type == KvType::bf16) return from_bf16(to_bf16(x));
    return x;
  }

  // Cuts the entries into pages whose sizes repeat `sizes`.
  void page(const std::vector<std::int64_t>& sizes) {
    pages.clear();
    wide.clear();
    narrow.clear();
    encoded.clear();
    std::size_t at = 0;
    for (std::int64_t begin = 0; begin < entries; ++at) {
      const std::int64_t n = std::min(sizes[at % sizes.size()], entries - begin);
      PageView view{};
      const auto numbers = [&](const std::vector<double>& from) -> const void* {
        const auto first = from.begin() + begin * d, last = first + n * d;
        if (type == KvType::f32) {
          wide.emplace_back(first, last);
          return wide.back().data();
        }
        narrow.emplace_back();
        for (auto it = first; it != last; ++it) {
          narrow.back().push_back(type == KvType::f16 ? to_half(*it)
                                                      : to_bf16(static_cast<float>(*it)));
        }
        return narrow.back().data();
      };
      view.k = numbers(k);
      view.v = numbers(v);
      view.positions = k_positions.data() + begin;
      view.log_mass = log_mass.empty() ? nullptr : log_mass.data() + begin;
      view.entries = static_cast<std::int32_t>(n);
      view.type = type;
      pages.push_back(view);
      begin += n;
    }
  }

  // Encodes page i as each[i % size], or leaves it as it is. Its entries have others of the matrix before and behind
  // them; k and v become what the encoded ones decode to.
  void encode_pages(const std::vector<std::optional<Encoding>>& each, std::int64_t before,
                    std::int64_t behind) {
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < pages.size(); ++i) {
      PageView& page = pages[i];
      const std::int64_t n = page.entries;
      if (const auto& encoding = each[i % each.size()]) {
        page.k = encode_entries(encoding->keys, k, begin, n, before, behind);
        page.v = encode_entries(encoding->values, v, begin, n, before, behind);
        page.k_codec = encoding->keys;
        page.v_codec = encoding->values;
        page.encoded = static_cast<std::int32_t>(before + n + behind);
        page.first = static_cast<std::int32_t>(before);
      }
      begin += n;
    }
  }

  // Of page i's keys only the channels each[i % size] are held, or all where that is empty; k becomes 0 in the others.
  void hold_channels(const std::vector<std::vector<std::uint8_t>>& each) {
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < pages.size(); ++i) {
      PageView& page = pages[i];
      const auto& channels = each[i % each.size()];
      const std::int64_t n = page.entries;
      if (!channels.empty()) {
        std::vector<double> held;
        for (std::int64_t e = begin; e < begin + n; ++e) {
          std::vector<double> key(static_cast<std::size_t>(d), 0);
          for (const auto c : channels) {
            key[c] = k[static_cast<std::size_t>(e * d + c)];
            held.push_back(key[c]);
          }
          std::copy(key.begin(), key.end(), k.begin() + e * d);
        }
        if (type == KvType::f32) {
          wide.emplace_back(held.begin(), held.end());
          page.k = wide.back().data();
        } else {
          narrow.emplace_back();
          for (const double x : held)
            narrow.back().push_back(type == KvType::f16 ? to_half(x)
                                                        : to_bf16(static_cast<float>(x)));
          page.k = narrow.back().data();
        }
        page.channels = channels.data();
        page.k_width = static_cast<std::int32_t>(channels.size());
      }
      begin += n;
    }
  }

  const void* encode_entries(NumberCodec codec, std::vector<double>& numbers, std::int64_t begin,
                             std::int64_t n, std::int64_t before, std::int64_t behind) {
    const std::int64_t rows = before + n + behind;
    auto matrix = normal_numbers(rows * d, static_cast<unsigned>(begin + n), 3.f);
    std::copy_n(numbers.begin() + begin * d, n * d, matrix.begin() + before * d);
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(encoded_bytes(codec, rows, d)));
    encode(codec, matrix.data(), rows, d, bytes.data());
    decode(codec, bytes.data(), rows, d, matrix.data());
    std::copy_n(matrix.begin() + before * d, n * d, numbers.begin() + begin * d);
    return encoded.emplace_back(std::make_unique<AtTheEnd>(bytes))->data();
  }

  [[nodiscard]] AttendTask task(std::vector<float>& out, std::vector<float>* lse) const {
    AttendTask task{};
    task.q = q.data();
    task.heads = G;
    task.T = T;
    task.q_head_stride = T * d;
    task.q_time_stride = d;
    task.q_positions = q_positions.data();
    task.pages = pages;
    task.out = out.data();
    task.out_head_stride = T * d;
    task.out_time_stride = d;
    task.lse = lse == nullptr ? nullptr : lse->data();
    return task;
  }
};

struct Outcome {
  std::vector<double> out, lse;
};

Outcome oracle(const Head& h, double scale, const Visibility& visibility) {
  Outcome o;
  for (std::int64_t g = 0; g < h.G; ++g) {
    for (std::int64_t t = 0; t < h.T; ++t) {
      const std::int64_t query = h.q_positions[static_cast<std::size_t>(t)];
      std::vector<double> scores(static_cast<std::size_t>(h.entries), -INFINITY);
      double peak = -INFINITY;
      for (std::int64_t e = 0; e < h.entries; ++e) {
        const std::int64_t key = h.k_positions[static_cast<std::size_t>(e)];
        if (visibility.causal && key > query) continue;
        if (visibility.window > 0 && query - key >= visibility.window) continue;
        double s = 0;
        for (std::int64_t i = 0; i < h.d; ++i) {
          s += static_cast<double>(h.q[static_cast<std::size_t>((g * h.T + t) * h.d + i)]) *
               h.k[static_cast<std::size_t>(e * h.d + i)];
        }
        s = s * scale + (h.log_mass.empty() ? 0 : h.log_mass[static_cast<std::size_t>(e)]);
        scores[static_cast<std::size_t>(e)] = s;
        peak = std::max(peak, s);
      }
      double total = 0;
      std::vector<double> out(static_cast<std::size_t>(h.d), 0);
      for (std::int64_t e = 0; e < h.entries && peak > -INFINITY; ++e) {
        const double w = std::exp(scores[static_cast<std::size_t>(e)] - peak);
        total += w;
        for (std::int64_t i = 0; i < h.d; ++i)
          out[static_cast<std::size_t>(i)] += w * h.v[static_cast<std::size_t>(e * h.d + i)];
      }
      for (double x : out) o.out.push_back(total == 0 ? 0 : x / total);
      o.lse.push_back(total == 0 ? -INFINITY : peak + std::log(total));
    }
  }
  return o;
}

// Both ways to multiply; numbers of 8 significant bits where the level has products of these.
void expect_attends(const Head& h, float scale, const Visibility& visibility,
                    const std::string& what) {
  const Outcome want = oracle(h, scale, visibility);
  for (const Products products : {Products::f32, Products::bf16}) {
    const bool rounds = products == Products::bf16 && table().attend_bf16 != nullptr;
    // Few queries are rounded by 4-bit pages alone, and to 16 bits.
    const bool few = h.G * h.T <= table().attend_single_rows;
    const std::string which = what + (products == Products::bf16 ? ", bf16" : "");
    std::vector<float> out(h.q.size(), kNan), lse(static_cast<std::size_t>(h.G * h.T), kNan);
    const AttendTask task = h.task(out, &lse);
    attend({&task, 1}, h.d, scale, visibility, products);
    ASSERT_LT(relative_error(out, want.out), !rounds ? 2e-6 : few ? 1e-3 : 2e-2) << which;
    for (std::size_t i = 0; i < lse.size(); ++i) {
      if (std::isinf(want.lse[i])) {
        ASSERT_EQ(lse[i], -kInfinity) << which;
      } else {
        ASSERT_NEAR(lse[i], want.lse[i], (rounds ? 1e-2 : 1e-5) * (1 + std::fabs(want.lse[i])))
            << which;
      }
    }
  }
}

class Attend : public AtLevel {
 protected:
  void TearDown() override {
    at::set_num_threads(1);
    AtLevel::TearDown();
  }
};
MNEME_AT_EVERY_LEVEL(Attend);

TEST_P(Attend, ShapesThatReachEveryTail) {
  for (std::int64_t G : {1, 3, 4, 9}) {
    for (std::int64_t T : {1, 2, 5, 17, 50}) {
      for (std::int64_t entries : {1, 3, 63, 64, 65, 131}) {
        if (T > entries) continue;
        Head h(G, T, 64, entries, static_cast<unsigned>(G * 100 + T));
        h.page({64});
        expect_attends(
            h, 0.125f, {},
            "G " + std::to_string(G) + " T " + std::to_string(T) + " N " + std::to_string(entries));
      }
    }
  }
}

TEST_P(Attend, ProductsOfFewBitsAreExact) {
  // Queries, keys and values that bf16 holds: only the weights are rounded, so that scores are as exact as in f32.
  for (const std::int64_t T : {9, 40, 200}) {
    Head h(3, T, 72, 301, 21);
    const auto few_bits = [](auto& numbers) {
      for (auto& x : numbers) x = std::nearbyint(16 * x) / 16;
    };
    few_bits(h.q);
    few_bits(h.k);
    few_bits(h.v);
    h.page({64, 5});
    std::vector<float> out(h.q.size(), kNan), lse(static_cast<std::size_t>(h.G * T), kNan);
    const AttendTask task = h.task(out, &lse);
    // The factor that makes powers of two of the exponentials is part of the queries: 1 / log2(e) takes it out.
    attend({&task, 1}, h.d, 0.125f * 0.693147181f, {}, Products::bf16);
    const Outcome want = oracle(h, 0.125 * 0.693147181, {});
    EXPECT_LT(relative_error(out, want.out), 3e-3) << T;
    for (std::size_t i = 0; i < lse.size(); ++i)
      ASSERT_NEAR(lse[i], want.lse[i], 2e-6 * (1 + std::fabs(want.lse[i]))) << T;
  }
}

TEST_P(Attend, MoreHeadsThanABlockHolds) {
  for (int threads : {1, 3}) {
    at::set_num_threads(threads);
    for (std::int64_t T : {1, 3}) {
      Head h(71, T, 64, 150, 71);
      h.page({64});
      expect_attends(h, 0.125f, {}, "T " + std::to_string(T));
    }
  }
}

TEST_P(Attend, EveryHeadWidth) {
  for (std::int64_t d = 8; d <= kMostHeadWidth; d += 8) {
    for (std::int64_t T : {1, 9}) {
      Head h(3, T, d, 70, static_cast<unsigned>(d));
      h.page({64});
      expect_attends(h, 1.f / std::sqrt(static_cast<float>(d)), {},
                     "d " + std::to_string(d) + " T " + std::to_string(T));
    }
  }
}

TEST_P(Attend, StoredHalves) {
  for (KvType type : {KvType::f16, KvType::bf16}) {
    for (std::int64_t d : {24, 64, 128}) {
      for (std::int64_t T : {1, 40}) {
        Head h(3, T, d, 150, 77, type);
        h.page({64, 13});
        expect_attends(
            h, 0.1f, {},
            "type " + std::to_string(static_cast<int>(type)) + " d " + std::to_string(d));
      }
    }
  }
}

TEST_P(Attend, WindowsAndFullSight) {
  for (std::int64_t T : {1, 30}) {
    Head h(4, T, 64, 200, 5);
    h.page({64, 31});
    for (bool causal : {true, false}) {
      for (std::int64_t window : {0, 1, 7, 64, 1000}) {
        expect_attends(h, 0.2f, {causal, window},
                       "causal " + std::to_string(causal) + " window " + std::to_string(window));
      }
    }
  }
}

TEST_P(Attend, PositionsInAnyOrderAndFarApart) {
  std::mt19937 generator(9);
  for (std::int64_t T : {1, 21}) {
    Head h(3, T, 32, 180, 6);
    std::shuffle(h.k_positions.begin(), h.k_positions.end(), generator);
    std::shuffle(h.q_positions.begin(), h.q_positions.end(), generator);
    h.page({64});
    expect_attends(h, 0.3f, {true, 0}, "shuffled");
    expect_attends(h, 0.3f, {true, 50}, "shuffled, window");
    for (auto& p : h.k_positions) p = p * 1'000'000'007LL - 90'000'000'000LL;
    for (auto& p : h.q_positions) p = p * 1'000'000'007LL - 90'000'000'000LL;
    expect_attends(h, 0.3f, {true, 0}, "far apart");
    expect_attends(h, 0.3f, {true, 40'000'000'000LL}, "far apart, window");
  }
}

TEST_P(Attend, NothingVisibleGivesZeros) {
  for (std::int64_t T : {1, 20}) {
    Head h(3, T, 64, 100, 8);
    for (std::int64_t t = 0; t < T; ++t)
      h.q_positions[static_cast<std::size_t>(t)] = t % 2 == 0 ? -1 : 99;
    h.page({64});
    expect_attends(h, 0.125f, {}, "every second query sees nothing");
    h.pages.clear();
    h.entries = 0;
    std::vector<float> out(h.q.size(), kNan), lse(static_cast<std::size_t>(h.G * T), kNan);
    const AttendTask task = h.task(out, &lse);
    attend({&task, 1}, 64, 1.f, {});
    for (float x : out) EXPECT_EQ(x, 0.f);
    for (float x : lse) EXPECT_EQ(x, -kInfinity);
  }
}

TEST_P(Attend, EmptyPagesBetween) {
  Head h(3, 1, 64, 130, 9);
  h.page({64});
  PageView empty{};
  h.pages.insert(h.pages.begin() + 1, empty);
  h.pages.insert(h.pages.begin(), empty);
  expect_attends(h, 0.125f, {}, "one query");
  Head many(3, 40, 64, 130, 9);
  many.page({64});
  many.pages.insert(many.pages.begin() + 1, empty);
  expect_attends(many, 0.125f, {}, "many queries");
}

TEST_P(Attend, LogMassIsAddedToTheScores) {
  for (std::int64_t T : {1, 33}) {
    Head h(3, T, 64, 150, 10);
    h.log_mass = normal_numbers(150, 11, 2.f);
    h.log_mass[5] = -kInfinity;  // an entry of no mass
    h.page({64, 20});
    expect_attends(h, 0.125f, {}, "T " + std::to_string(T));
  }
}

TEST_P(Attend, AMassOfNCountsAsNEqualEntries) {
  Head once(2, 1, 32, 40, 12), thrice(2, 1, 32, 42, 12);
  once.q_positions = thrice.q_positions = {1000};
  for (int copy : {40, 41}) {
    std::copy_n(once.k.begin(), 32, thrice.k.begin() + copy * 32);
    std::copy_n(once.v.begin(), 32, thrice.v.begin() + copy * 32);
  }
  std::copy(once.k.begin(), once.k.end(), thrice.k.begin());
  std::copy(once.v.begin(), once.v.end(), thrice.v.begin());
  once.log_mass.assign(40, 0.f);
  once.log_mass[0] = std::log(3.f);
  once.page({64});
  thrice.page({64});
  thrice.q = once.q;
  std::vector<float> a(once.q.size(), kNan), b(once.q.size(), kNan);
  const AttendTask one = once.task(a, nullptr), three = thrice.task(b, nullptr);
  attend({&one, 1}, 32, 0.2f, {});
  attend({&three, 1}, 32, 0.2f, {});
  EXPECT_LT(relative_error(a, b), 1e-6);
}

TEST_P(Attend, AnyPagingAndAnyThreadsGiveTheSame) {
  for (std::int64_t T : {1, 3, 70}) {
    Head h(3, T, 64, 700, 13);
    std::vector<float> first;
    for (int threads : {1, 2, 3, 7}) {
      at::set_num_threads(threads);
      for (const auto& sizes :
           std::vector<std::vector<std::int64_t>>{{64}, {1, 64, 17}, {63}, {8}, {5, 2}}) {
        h.page(sizes);
        std::vector<float> out(h.q.size(), kNan), lse(static_cast<std::size_t>(3 * T), kNan);
        const AttendTask task = h.task(out, &lse);
        attend({&task, 1}, 64, 0.125f, {});
        if (first.empty()) first = out;
        EXPECT_LT(relative_error(out, first), 1e-6) << threads << " threads, T " << T;
      }
    }
    h.page({64});
    expect_attends(h, 0.125f, {}, "seven threads");
  }
}

TEST_P(Attend, ManyTasksOfDifferentLengthsAtOnce) {
  for (int threads : {1, 2, 5}) {
    at::set_num_threads(threads);
    std::vector<Head> heads;
    heads.emplace_back(3, 1, 64, 300, 20);
    heads.emplace_back(3, 120, 64, 500, 21);
    heads.emplace_back(3, 0, 64, 10, 22);
    heads.emplace_back(1, 1, 64, 64, 23);
    heads.emplace_back(4, 9, 64, 1000, 24, KvType::f16);
    std::vector<std::vector<float>> outs, lses;
    for (Head& h : heads) {
      h.page({64});
      outs.emplace_back(h.q.size(), kNan);
      lses.emplace_back(static_cast<std::size_t>(h.G * h.T), kNan);
    }
    std::vector<AttendTask> tasks;
    for (std::size_t i = 0; i < heads.size(); ++i)
      tasks.push_back(heads[i].task(outs[i], &lses[i]));
    attend(tasks, 64, 0.125f, {true, 333});
    for (std::size_t i = 0; i < heads.size(); ++i) {
      EXPECT_LT(relative_error(outs[i], oracle(heads[i], 0.125, {true, 333}).out), 2e-6)
          << i << ", " << threads << " threads";
    }
  }
}

TEST_P(Attend, StridesOfTimeFirstLayouts) {
  constexpr std::int64_t kG = 3, kT = 7, kD = 32;
  Head h(kG, kT, kD, 90, 30);
  h.page({64});
  std::vector<float> dense(h.q.size(), kNan);
  const AttendTask plain = h.task(dense, nullptr);
  attend({&plain, 1}, kD, 0.2f, {});
  // [T,G,d + 5] on both sides.
  constexpr std::int64_t kRow = kD + 5;
  std::vector<float> q(kT * kG * kRow, kNan), out(kT * kG * kRow, -9.f);
  for (std::int64_t g = 0; g < kG; ++g) {
    for (std::int64_t t = 0; t < kT; ++t)
      std::copy_n(h.q.begin() + (g * kT + t) * kD, kD, q.begin() + (t * kG + g) * kRow);
  }
  AttendTask task = plain;
  task.q = q.data();
  task.out = out.data();
  task.q_head_stride = task.out_head_stride = kRow;
  task.q_time_stride = task.out_time_stride = kG * kRow;
  attend({&task, 1}, kD, 0.2f, {});
  for (std::int64_t g = 0; g < kG; ++g) {
    for (std::int64_t t = 0; t < kT; ++t) {
      for (std::int64_t i = 0; i < kRow; ++i) {
        const float want = i < kD ? dense[static_cast<std::size_t>((g * kT + t) * kD + i)] : -9.f;
        ASSERT_EQ(out[static_cast<std::size_t>((t * kG + g) * kRow + i)], want);
      }
    }
  }
}

TEST_P(Attend, OneVisibleEntryIsCopiedExactly) {
  for (std::int64_t T : {1, 30}) {
    Head h(2, T, 64, 80, 31);
    h.page({64});
    std::vector<float> out(h.q.size(), kNan);
    const AttendTask task = h.task(out, nullptr);
    attend({&task, 1}, 64, 0.125f, {true, 1});
    for (std::int64_t g = 0; g < 2; ++g) {
      for (std::int64_t t = 0; t < T; ++t) {
        for (std::int64_t i = 0; i < 64; ++i) {
          ASSERT_EQ(out[static_cast<std::size_t>((g * T + t) * 64 + i)],
                    static_cast<float>(h.v[static_cast<std::size_t>((80 - T + t) * 64 + i)]));
        }
      }
    }
  }
}

TEST_P(Attend, LargeScoresDoNotOverflow) {
  for (std::int64_t T : {1, 30}) {
    Head h(3, T, 64, 100, 32);
    for (float& x : h.q) x *= 300.f;
    h.page({64});
    std::vector<float> out(h.q.size(), kNan);
    const AttendTask task = h.task(out, nullptr);
    attend({&task, 1}, 64, 1.f, {});
    // Scores reach thousands, so that their own rounding in single precision shows.
    EXPECT_LT(relative_error(out, oracle(h, 1.0, {}).out), 1e-3);
  }
}

TEST_P(Attend, ABrokenKeyReachesOnlyTheQueriesThatSeeIt) {
  for (int threads : {1, 3}) {
    at::set_num_threads(threads);
    for (std::int64_t T : {2, 40}) {
      Head h(3, T, 64, 300, 33);
      h.k[(300 - 1) * 64 + 3] = std::nan("");
      h.page({64});
      std::vector<float> out(h.q.size(), 0.f);
      const AttendTask task = h.task(out, nullptr);
      attend({&task, 1}, 64, 0.125f, {});
      for (std::int64_t g = 0; g < 3; ++g) {
        for (std::int64_t t = 0; t < T; ++t) {
          EXPECT_EQ(std::isnan(out[static_cast<std::size_t>((g * T + t) * 64)]), t == T - 1) << t;
        }
      }
    }
  }
}

std::string name_of(const Encoding& encoding) {
  return std::string(encoding.keys == NumberCodec::group8 ? "group8" : "channel4") + " " +
         (encoding.values == NumberCodec::group8 ? "group8" : "group4");
}

TEST_P(Attend, EncodedPagesReadAsTheyDecode) {
  for (const Encoding& encoding : {kQ8, kQ4}) {
    for (std::int64_t d : {8, 24, 64, 72, 128, 256}) {
      for (std::int64_t entries : {1, 3, 31, 32, 33, 63, 64}) {
        for (std::int64_t before : {0, 5, 31, 32}) {
          for (std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 40}) {
            // The last row sees all entries of both pages and of a third one.
            const std::int64_t T = rows > 4 && rows % 2 == 0 ? rows / 2 : 1;
            Head h(rows / T, T, d, 2 * entries + 1, static_cast<unsigned>(d + entries + rows));
            h.page({entries, entries, 1});
            h.encode_pages({encoding}, before, before % 2);
            expect_attends(h, 1.f / std::sqrt(static_cast<float>(d)), {},
                           name_of(encoding) + " d " + std::to_string(d) + " N " +
                               std::to_string(entries) + " before " + std::to_string(before) +
                               " rows " + std::to_string(rows));
          }
        }
      }
    }
  }
}

TEST_P(Attend, KeysAndValuesMayBeEncodedDifferently) {
  for (const Encoding& encoding : {Encoding{NumberCodec::group8, NumberCodec::group4},
                                   Encoding{NumberCodec::channel4, NumberCodec::group8}}) {
    for (std::int64_t T : {1, 40}) {
      Head h(3, T, 72, 150, 60);
      h.page({64, 13});
      h.encode_pages({encoding}, 7, 3);
      expect_attends(h, 0.1f, {}, name_of(encoding) + " T " + std::to_string(T));
    }
  }
}

TEST_P(Attend, EncodedPagesAmongOthers) {
  for (int threads : {1, 3}) {
    at::set_num_threads(threads);
    for (std::int64_t G : {1, 3, 7}) {
      for (std::int64_t T : {1, 30}) {
        for (std::int64_t d : {24, 64}) {
          Head h(G, T, d, 500, 61, KvType::f16);
          h.log_mass = normal_numbers(500, 62, 2.f);
          h.log_mass[5] = -kInfinity;
          h.page({64, 64, 64, 17});
          h.encode_pages({std::nullopt, kQ4, kQ8}, 9, 2);
          PageView empty{};
          empty.encoded = 64;
          h.pages.insert(h.pages.begin() + 2, empty);
          for (bool causal : {true, false}) {
            for (std::int64_t window : {0, 1, 70}) {
              expect_attends(h, 0.2f, {causal, window},
                             "G " + std::to_string(G) + " T " + std::to_string(T) + " d " +
                                 std::to_string(d) + " causal " + std::to_string(causal) +
                                 " window " + std::to_string(window));
            }
          }
        }
      }
    }
  }
}

TEST_P(Attend, KeysOfSomeChannels) {
  for (const KvType type : {KvType::f32, KvType::f16, KvType::bf16}) {
    for (std::int64_t d : {8, 64, 72, 256}) {
      std::vector<std::vector<std::uint8_t>> lists(3);
      for (std::int64_t c = 0; c < d; ++c) {
        if (c % 5 != 1 && c % 3 != 0) lists[0].push_back(static_cast<std::uint8_t>(c));
        if (c == d - 1) lists[1].push_back(static_cast<std::uint8_t>(c));
      }
      for (std::int64_t rows : {1, 3, 5, 9, 40, 200}) {
        const std::int64_t T = rows > 4 ? rows / 2 : 1;
        Head h(rows / T, T, d, 203, static_cast<unsigned>(d + rows), type);
        h.log_mass = normal_numbers(203, 62, 1.f);
        h.page({64, 17, 3});
        h.hold_channels(lists);
        expect_attends(h, 1.f / std::sqrt(static_cast<float>(d)), {true, rows == 9 ? 50 : 0},
                       "d " + std::to_string(d) + " rows " + std::to_string(rows));
      }
    }
  }
}

TEST_P(Attend, OneVisibleEncodedEntryIsCopiedExactly) {
  for (const Encoding& encoding : {kQ8, kQ4}) {
    for (std::int64_t d : {24, 64, 96, 200}) {
      for (std::int64_t T : {1, 30}) {
        Head h(2, T, d, 80, 63);
        h.page({64});
        h.encode_pages({encoding}, 1, 0);
        std::vector<float> out(h.q.size(), kNan);
        const AttendTask task = h.task(out, nullptr);
        attend({&task, 1}, d, 0.125f, {true, 1});
        for (std::int64_t g = 0; g < 2; ++g) {
          for (std::int64_t t = 0; t < T; ++t) {
            for (std::int64_t i = 0; i < d; ++i) {
              ASSERT_EQ(out[static_cast<std::size_t>((g * T + t) * d + i)],
                        static_cast<float>(h.v[static_cast<std::size_t>((80 - T + t) * d + i)]))
                  << name_of(encoding) << " d " << d << " T " << T;
            }
          }
        }
      }
    }
  }
}

TEST_P(Attend, ABrokenScaleReachesOnlyTheQueriesThatSeeIt) {
  for (std::int64_t T : {2, 40}) {
    Head h(3, T, 64, 100, 64);
    h.page({64});
    h.encode_pages({kQ8}, 0, 0);
    auto* scales = static_cast<std::uint16_t*>(const_cast<void*>(h.pages.back().k));
    scales[h.pages.back().entries - 1] = to_half(std::nan(""));
    std::vector<float> out(h.q.size(), 0.f);
    const AttendTask task = h.task(out, nullptr);
    attend({&task, 1}, 64, 0.125f, {});
    for (std::int64_t g = 0; g < 3; ++g) {
      for (std::int64_t t = 0; t < T; ++t)
        EXPECT_EQ(std::isfinite(out[static_cast<std::size_t>((g * T + t) * 64)]), t != T - 1) << t;
    }
  }
}

TEST_P(Attend, ABrokenScaleOf4BitsReachesTheResult) {
  for (const Products products : {Products::f32, Products::bf16}) {
    for (const bool in_keys : {true, false}) {
      Head h(3, 1, 64, 100, 66);
      h.page({64});
      h.encode_pages({kQ4}, 0, 0);
      auto& page = h.pages.front();
      auto* scales = static_cast<std::uint16_t*>(const_cast<void*>(in_keys ? page.k : page.v));
      scales[6] = to_half(std::nan(""));  // of a channel, or of an entry
      std::vector<float> out(h.q.size(), 0.f);
      const AttendTask task = h.task(out, nullptr);
      attend({&task, 1}, 64, 0.125f, {}, products);
      for (std::int64_t g = 0; g < 3; ++g)
        EXPECT_FALSE(std::isfinite(out[static_cast<std::size_t>(g * 64)])) << in_keys;
    }
  }
}

TEST_P(Attend, QueriesOf4BitPagesDoNotDependOnTheirNeighbours) {
  Head h(3, 1, 64, 150, 67);
  h.page({64});
  h.encode_pages({kQ4}, 0, 0);
  const auto others = [&](float of_first) {
    auto q = h.q;
    for (std::int64_t i = 0; i < 64; ++i) q[static_cast<std::size_t>(i)] *= of_first;
    std::vector<float> out(h.q.size(), 0.f);
    AttendTask task = h.task(out, nullptr);
    task.q = q.data();
    attend({&task, 1}, 64, 0.125f, {}, Products::bf16);
    return std::vector<float>(out.begin() + 64, out.end());
  };
  const auto want = others(1.f);
  for (const float factor : {1e4f, kInfinity, kNan}) EXPECT_EQ(others(factor), want) << factor;
}

TEST_P(Attend, AnInvisibleEntryOf4BitsDoesNotCoarsenTheOthers) {
  Head h(3, 1, 64, 100, 68);
  for (std::size_t i = 0; i < 64; ++i) h.v[5 * 64 + i] *= 1e4;
  h.k_positions[5] = 1000;
  h.page({64});
  h.encode_pages({kQ4}, 0, 0);
  expect_attends(h, 0.125f, {true, 0}, "beside a large entry");
}

// What is rounded are products of queries and scales: neither factor has to be of one size.
TEST_P(Attend, LargeQueriesOfNarrowChannelsDoNotCoarsenTheOthersOf4Bits) {
  Head h(3, 1, 64, 100, 69);
  for (std::size_t g = 0; g < 3; ++g) h.q[g * 64 + 7] *= 3000;
  for (std::size_t i = 0; i < 100; ++i) h.k[i * 64 + 7] /= 3000;
  h.page({64});
  h.encode_pages({kQ4}, 0, 0);
  expect_attends(h, 0.125f, {true, 0}, "a channel of another size");
}

TEST_P(Attend, EncodedPagesThatItCannotReadAreRefused) {
  Head h(1, 1, 64, 10, 65);
  h.page({64});
  h.encode_pages({kQ4}, 3, 2);
  std::vector<float> out(64);
  const AttendTask task = h.task(out, nullptr);
  const PageView good = h.pages[0];
  const auto refused = [&](const PageView& page) {
    h.pages[0] = page;
    EXPECT_THROW(attend({&task, 1}, 64, 1.f, {}), Error);
  };
  for (std::int32_t first : {-1, 6, 1'000'000'000}) {
    PageView page = good;
    page.first = first;
    refused(page);
  }
  for (std::int32_t rows : {12, 9, -15}) {
    PageView page = good;
    page.encoded = rows;
    refused(page);
  }
  PageView keys = good, values = good;
  keys.k_codec = NumberCodec::group4;
  refused(keys);
  values.v_codec = NumberCodec::channel4;
  refused(values);
  h.pages[0] = good;
  EXPECT_NO_THROW(attend({&task, 1}, 64, 1.f, {}));
}

TEST_P(Attend, WrongShapesAreRefused) {
  Head h(1, 1, 64, 10, 34);
  h.page({64});
  std::vector<float> out(64);
  AttendTask task = h.task(out, nullptr);
  for (std::int64_t d : {0, -8, 4, 12, 264})
    EXPECT_THROW(attend({&task, 1}, d, 1.f, {}), Error) << d;
  EXPECT_THROW(attend({&task, 1}, 64, 1.f, {true, -1}), Error);
  task.T = -1;
  EXPECT_THROW(attend({&task, 1}, 64, 1.f, {}), Error);
  task.T = 1;
  h.pages[0].entries = 65;
  EXPECT_THROW(attend({&task, 1}, 64, 1.f, {}), Error);
}

// ---- rotary positions ----

TEST_P(Attend, TheRangeOfPositionsIsThatOfALoop) {
  const auto& kernels = table(GetParam());
  std::mt19937_64 random(5);
  for (std::int64_t n = 0; n <= 70; ++n) {
    std::vector<std::int64_t> positions(static_cast<std::size_t>(n));
    for (auto& each : positions) each = static_cast<std::int64_t>(random());
    // The ends of the range stand once at each place, so that no tail can be left out.
    for (std::int64_t place = -1; place < n; ++place) {
      auto some = positions;
      if (place >= 0) {
        some[static_cast<std::size_t>(place)] = std::numeric_limits<std::int64_t>::min();
        some[static_cast<std::size_t>(n - 1 - place)] = std::numeric_limits<std::int64_t>::max();
      }
      PositionRange want{};
      for (const auto each : some) {
        want.lowest = std::min(want.lowest, each);
        want.highest = std::max(want.highest, each);
      }
      std::vector<std::uint8_t> bytes(sizeof(std::int64_t) * some.size());
      if (!some.empty()) std::memcpy(bytes.data(), some.data(), bytes.size());
      const AtTheEnd at(bytes);
      const auto got = kernels.position_range(reinterpret_cast<const std::int64_t*>(at.data()), n);
      EXPECT_EQ(got.lowest, want.lowest) << n << " positions, " << place;
      EXPECT_EQ(got.highest, want.highest) << n << " positions, " << place;
    }
  }
}

class Rotate : public AtLevel {};
MNEME_AT_EVERY_LEVEL(Rotate);

std::vector<double> frequencies(std::int64_t pairs) {
  std::vector<double> f;
  for (std::int64_t i = 0; i < pairs; ++i)
    f.push_back(std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(pairs)));
  return f;
}

TEST_P(Rotate, EqualsTheFormulaForBothLayouts) {
  constexpr std::int64_t kH = 3, kT = 6;
  const std::int64_t positions[kT] = {0, 1, 8191, -300, 70'000, -1'000'003};
  for (std::int64_t pairs : {1, 4, 7, 32, 40}) {
    for (std::int64_t rest : {0, 6}) {
      for (PairLayout layout : {PairLayout::halves, PairLayout::adjacent}) {
        const std::int64_t d = 2 * pairs + rest;
        const auto x = normal_numbers(kH * kT * d, 50);
        const auto f = frequencies(pairs);
        std::vector<double> want(x.begin(), x.end());
        for (std::int64_t h = 0; h < kH; ++h) {
          for (std::int64_t t = 0; t < kT; ++t) {
            for (std::int64_t i = 0; i < pairs; ++i) {
              const std::int64_t a = layout == PairLayout::halves ? i : 2 * i;
              const std::int64_t b = layout == PairLayout::halves ? i + pairs : 2 * i + 1;
              double& first = want[static_cast<std::size_t>((h * kT + t) * d + a)];
              double& second = want[static_cast<std::size_t>((h * kT + t) * d + b)];
              const double angle =
                               static_cast<double>(positions[t]) * f[static_cast<std::size_t>(i)],
                           old = first;
              first = first * std::cos(angle) - second * std::sin(angle);
              second = second * std::cos(angle) + old * std::sin(angle);
            }
          }
        }
        auto kept = x, once = x;
        Rope(f, layout).rotate(kept.data(), kH, kT, kT * d, d, positions);
        rope(once.data(), kH, kT, kT * d, d, positions, f, layout);
        EXPECT_LT(relative_error(kept, want), 2e-7) << pairs;
        EXPECT_LT(relative_error(once, want), 2e-7) << pairs;
      }
    }
  }
}

TEST_P(Rotate, MovingStoredKeysEqualsPlacingThemThere) {
  constexpr std::int64_t kT = 100, kD = 64;
  const auto x = normal_numbers(kT * kD, 51);
  const Rope turn(frequencies(kD / 2), PairLayout::halves);
  std::vector<std::int64_t> stored(kT), moved(kT), by(kT, 1234), back(kT, -1234);
  std::iota(stored.begin(), stored.end(), 10);
  std::iota(moved.begin(), moved.end(), 1244);
  auto there = x, placed = x;
  turn.rotate(there.data(), 1, kT, kT * kD, kD, moved.data());
  turn.rotate(placed.data(), 1, kT, kT * kD, kD, stored.data());
  const auto before = placed;
  turn.rotate(placed.data(), 1, kT, kT * kD, kD, by.data());
  EXPECT_LT(relative_error(placed, there), 3e-7);
  turn.rotate(placed.data(), 1, kT, kT * kD, kD, back.data());
  EXPECT_LT(relative_error(placed, before), 3e-7);
}

TEST_P(Rotate, MagnitudeScalesOnlyWhatTurns) {
  std::vector<float> x{3.f, 4.f, 5.f};
  const std::int64_t position = 0;
  Rope({1.0}, PairLayout::halves, 1.5).rotate(x.data(), 1, 1, 3, 3, &position);
  EXPECT_EQ(x, (std::vector<float>{4.5f, 6.f, 5.f}));
}

TEST_P(Rotate, ThreadsThatFillTheTableAtOnceAgree) {
  constexpr std::int64_t kT = 600, kD = 16;
  const Rope turn(frequencies(kD / 2), PairLayout::adjacent);
  std::vector<std::int64_t> positions(kT);
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<std::vector<float>> results(4, normal_numbers(kT * kD, 52));
  std::vector<std::thread> threads;
  for (auto& each : results) {
    threads.emplace_back([&] { turn.rotate(each.data(), 1, kT, kT * kD, kD, positions.data()); });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& each : results) EXPECT_EQ(each, results.front());
}

// ---- exponentials ----

class Exp : public AtLevel {};
MNEME_AT_EVERY_LEVEL(Exp);

TEST_P(Exp, RelativeErrorBelowOneInAMillion) {
  std::vector<float> x;
  for (float each = -87.f; each < 88.7f; each += 0.00371f) x.push_back(each);
  std::vector<float> y(x.size(), kNan);
  exp(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp(static_cast<double>(x[i]));
    worst = std::max(worst, std::fabs(y[i] - want) / want);
  }
  EXPECT_LT(worst, 1e-6);
  RecordProperty("worst", std::to_string(worst));
}

TEST_P(Exp, EndsOfTheRange) {
  const float x[] = {0.f, -0.f, kInfinity, -kInfinity, kNan, 100.f, -200.f, 1e30f, -1e30f};
  float y[9];
  exp(x, y, 9);
  EXPECT_EQ(y[0], 1.f);
  EXPECT_EQ(y[1], 1.f);
  EXPECT_EQ(y[2], kInfinity);
  EXPECT_EQ(y[3], 0.f);
  EXPECT_TRUE(std::isnan(y[4]));
  EXPECT_EQ(y[5], kInfinity);
  EXPECT_EQ(y[6], 0.f);
  EXPECT_EQ(y[7], kInfinity);
  EXPECT_EQ(y[8], 0.f);
}

TEST_P(Exp, InPlaceAndEveryTail) {
  for (std::int64_t n = 0; n < 35; ++n) {
    std::vector<float> x(static_cast<std::size_t>(n) + 1, 0.5f);
    x.back() = -4.f;
    exp(x.data(), x.data(), n);
    for (std::int64_t i = 0; i < n; ++i)
      ASSERT_NEAR(x[static_cast<std::size_t>(i)], 1.6487213f, 1e-6);
    ASSERT_EQ(x.back(), -4.f);
  }
}

}  // namespace
}  // namespace mneme::kernels
