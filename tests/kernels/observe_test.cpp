#include "mneme/kernels/observe.h"

#include "mneme/core/error.h"
#include "mneme/kernels/codec.h"

#include <ATen/Parallel.h>

#include "at_level.h"
#include "half.h"
#include <algorithm>
#include <gtest/gtest.h>
#include <optional>

namespace mneme::kernels {
namespace {

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

// The keys of one KV head, in pages, and queries that look at them.
struct Scene {
  std::int64_t heads, T, d, entries;
  KvType type = KvType::f32;
  std::vector<float> q;   // [heads,T,d]
  std::vector<double> k;  // [entries,d], as stored
  std::vector<std::int64_t> q_positions, k_positions;
  std::vector<float> log_mass;     // empty or [entries]
  std::vector<float> row_weights;  // [T]
  std::vector<float> columns;      // [functionals,entries]
  std::int64_t functionals = 3;

  std::vector<std::vector<std::uint8_t>> memory;
  std::vector<PageView> pages;

  Scene(std::int64_t heads_, std::int64_t T_, std::int64_t d_, std::int64_t entries_, unsigned seed,
        KvType type_ = KvType::f32)
      : heads(heads_), T(T_), d(d_), entries(entries_), type(type_) {
    q = normal_numbers(heads * T * d, seed);
    for (float x : normal_numbers(entries * d, seed + 1)) k.push_back(stored(x));
    for (std::int64_t t = 0; t < T; ++t) q_positions.push_back(entries - T + t);
    for (std::int64_t e = 0; e < entries; ++e) k_positions.push_back(e);
    row_weights = normal_numbers(T, seed + 2);
    columns = normal_numbers(functionals * entries, seed + 3);
    for (std::int64_t e = 0; e < entries; ++e) columns[size(e)] = e % 3 == 0 ? 1.f : 0.f;
    page({64});
  }

  [[nodiscard]] double stored(float x) const {
    if (type == KvType::f16) return from_half(to_half(x));
    if (type == KvType::bf16) return from_bf16(to_bf16(x));
    return x;
  }

  // Cuts the entries into pages whose sizes repeat `sizes`; 0 is an empty page.
  void page(const std::vector<std::int64_t>& sizes) {
    pages.clear();
    memory.clear();
    std::int64_t begin = 0;
    for (std::size_t at = 0; begin < entries; ++at) {
      const std::int64_t n = std::min(sizes[at % sizes.size()], entries - begin);
      memory.emplace_back();
      const auto put = [&](auto number) {
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(&number);
        memory.back().insert(memory.back().end(), bytes, bytes + sizeof number);
      };
      for (std::int64_t i = begin * d; i < (begin + n) * d; ++i) {
        const auto x = static_cast<float>(k[size(i)]);
        if (type == KvType::f32) put(x);
        if (type == KvType::f16) put(to_half(x));
        if (type == KvType::bf16) put(to_bf16(x));
      }
      PageView view{};
      view.k = memory.back().data();
      view.positions = k_positions.data() + begin;
      view.log_mass = log_mass.empty() ? nullptr : log_mass.data() + begin;
      view.entries = static_cast<std::int32_t>(n);
      view.type = type;
      pages.push_back(view);
      begin += n;
    }
  }

  // Encodes page i as codecs[i % size], or leaves it as it is. Its entries have others of the matrix before and behind
  // them; k becomes what the encoded ones decode to.
  void encode_pages(const std::vector<std::optional<NumberCodec>>& codecs, std::int64_t before,
                    std::int64_t behind) {
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < pages.size(); begin += pages[i++].entries) {
      if (!codecs[i % codecs.size()]) continue;
      const NumberCodec codec = *codecs[i % codecs.size()];
      PageView& page = pages[i];
      const std::int64_t rows = before + page.entries + behind, numbers = page.entries * d;
      auto matrix = normal_numbers(rows * d, static_cast<unsigned>(i), 3.f);
      std::copy_n(k.begin() + begin * d, numbers, matrix.begin() + before * d);
      memory[i].resize(size(encoded_bytes(codec, rows, d)));
      encode(codec, matrix.data(), rows, d, memory[i].data());
      decode(codec, memory[i].data(), rows, d, matrix.data());
      std::copy_n(matrix.begin() + before * d, numbers, k.begin() + begin * d);
      page.k = memory[i].data();
      page.k_codec = codec;
      page.encoded = static_cast<std::int32_t>(rows);
      page.first = static_cast<std::int32_t>(before);
    }
  }

  // Of every second page's keys only these channels are held; k becomes 0 in the others.
  void hold_channels(const std::vector<std::uint8_t>& channels) {
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < pages.size(); begin += pages[i++].entries) {
      if (i % 2 != 0) continue;
      PageView& page = pages[i];
      const std::int64_t width = type == KvType::f32 ? 4 : 2;
      std::vector<std::uint8_t> held;
      for (std::int64_t e = 0; e < page.entries; ++e) {
        std::vector<double> key(size(d), 0);
        for (const auto c : channels) {
          const auto* from = memory[i].data() + (e * d + c) * width;
          held.insert(held.end(), from, from + width);
          key[c] = k[size((begin + e) * d + c)];
        }
        std::copy(key.begin(), key.end(), k.begin() + (begin + e) * d);
      }
      memory[i] = std::move(held);
      page.k = memory[i].data();
      page.channels = channels.data();
      page.k_width = static_cast<std::int32_t>(channels.size());
    }
  }
};

// Everything that can be observed, with one number after each that nobody may touch.
struct Statistics {
  std::vector<float> column_sums, row_sums, entropy, weights, column_most;

  explicit Statistics(const Scene& s)
      : column_sums(size(s.heads * s.entries) + 1, 0.f),
        row_sums(size(s.heads * s.T * s.functionals) + 1, 0.f),
        entropy(size(s.heads * s.T) + 1, 0.f),
        weights(size(s.heads * s.T * s.entries) + 1, kNan),
        column_most(size(s.heads * s.entries) + 1, 0.f) {
    for (auto* each : {&column_sums, &row_sums, &entropy, &weights, &column_most})
      each->back() = -77.f;
  }
  [[nodiscard]] std::vector<const std::vector<float>*> all() const {
    return {&column_sums, &row_sums, &entropy, &weights, &column_most};
  }
};

// A task that wants all of `to`.
ObserveTask task_of(const Scene& s, const std::vector<float>& lse, Statistics& to) {
  ObserveTask task{};
  task.q = s.q.data();
  task.heads = s.heads;
  task.T = s.T;
  task.q_head_stride = s.T * s.d;
  task.q_time_stride = s.d;
  task.q_positions = s.q_positions.data();
  task.pages = s.pages;
  task.lse = lse.data();
  task.column_sums = to.column_sums.data();
  task.row_weights = s.row_weights.data();
  task.row_sums = to.row_sums.data();
  task.columns = s.columns.data();
  task.functionals = s.functionals;
  task.entropy = to.entropy.data();
  task.weights = to.weights.data();
  task.column_most = to.column_most.data();
  return task;
}

struct Oracle {
  std::vector<double> scores;  // [heads,T,entries], -inf where not visible
  std::vector<double> weights;
  std::vector<float> lse;
  std::vector<double> column_sums, row_sums, entropy, column_most;
};

bool sees(const Visibility& visibility, std::int64_t query, std::int64_t key) {
  return (!visibility.causal || key <= query) &&
         (visibility.window == 0 || query - key < visibility.window);
}

// Weights of a softmax over what `normal` shows, of which `visibility` is looked at.
Oracle oracle(const Scene& s, double scale, const Visibility& visibility,
              const Visibility& normal) {
  Oracle o;
  o.column_sums.assign(size(s.heads * s.entries), 0);
  o.column_most.assign(size(s.heads * s.entries), 0);
  for (std::int64_t h = 0; h < s.heads; ++h) {
    for (std::int64_t t = 0; t < s.T; ++t) {
      const std::int64_t query = s.q_positions[size(t)];
      std::vector<double> scores;
      double peak = -INFINITY, total = 0, entropy = 0;
      for (std::int64_t e = 0; e < s.entries; ++e) {
        double x = 0;
        for (std::int64_t i = 0; i < s.d; ++i) {
          x += static_cast<double>(s.q[size((h * s.T + t) * s.d + i)]) * s.k[size(e * s.d + i)];
        }
        x = x * scale + (s.log_mass.empty() ? 0 : s.log_mass[size(e)]);
        if (!sees(normal, query, s.k_positions[size(e)])) x = -INFINITY;
        scores.push_back(x);
        peak = std::max(peak, x);
      }
      for (double x : scores) total += peak == -INFINITY ? 0 : std::exp(x - peak);
      const double lse = total == 0 ? -INFINITY : peak + std::log(total);
      o.lse.push_back(static_cast<float>(lse));
      std::vector<double> row_sums(size(s.functionals), 0);
      for (std::int64_t e = 0; e < s.entries; ++e) {
        const bool seen =
            scores[size(e)] > -INFINITY && sees(visibility, query, s.k_positions[size(e)]);
        const double a = seen ? std::exp(scores[size(e)] - lse) : 0;
        o.scores.push_back(seen ? scores[size(e)] : -INFINITY);
        o.weights.push_back(a);
        o.column_sums[size(h * s.entries + e)] += s.row_weights[size(t)] * a;
        auto& most = o.column_most[size(h * s.entries + e)];
        most = std::max(most, a);
        if (a > 0) entropy -= a * std::log(a);
        for (std::int64_t j = 0; j < s.functionals; ++j)
          row_sums[size(j)] += a * s.columns[size(j * s.entries + e)];
      }
      o.row_sums.insert(o.row_sums.end(), row_sums.begin(), row_sums.end());
      o.entropy.push_back(entropy);
    }
  }
  return o;
}

std::vector<float> without_last(std::vector<float> numbers) {
  EXPECT_EQ(numbers.back(), -77.f);
  numbers.pop_back();
  return numbers;
}

void expect_near(const Statistics& got, const Oracle& want, double tolerance,
                 const std::string& what) {
  ASSERT_LT(relative_error(without_last(got.weights), want.weights), tolerance) << what;
  ASSERT_LT(relative_error(without_last(got.column_sums), want.column_sums), tolerance) << what;
  ASSERT_LT(relative_error(without_last(got.row_sums), want.row_sums), tolerance) << what;
  ASSERT_LT(relative_error(without_last(got.column_most), want.column_most), tolerance) << what;
  for (std::size_t i = 0; i < want.entropy.size(); ++i)
    ASSERT_NEAR(got.entropy[i], want.entropy[i], 1e-4) << what;
}

void expect_observes(const Scene& s, float scale, const Visibility& visibility,
                     const std::string& what, const Visibility* normal = nullptr) {
  const Oracle want = oracle(s, scale, visibility, normal == nullptr ? visibility : *normal);
  Statistics got(s);
  const ObserveTask task = task_of(s, want.lse, got);
  observe({&task, 1}, s.d, scale, visibility);
  expect_near(got, want, 5e-6, what);
}

void expect_equal(const Statistics& a, const Statistics& b, const std::string& what) {
  for (std::size_t i = 0; i < a.all().size(); ++i) EXPECT_EQ(*a.all()[i], *b.all()[i]) << what;
}

class Observe : public AtLevel {
 protected:
  void TearDown() override {
    at::set_num_threads(1);
    AtLevel::TearDown();
  }
};
MNEME_AT_EVERY_LEVEL(Observe);

TEST_P(Observe, ShapesThatReachEveryTail) {
  for (std::int64_t heads : {1, 3, 4}) {
    for (std::int64_t T : {1, 2, 5, 17, 24, 25, 70}) {
      for (std::int64_t entries : {1, 3, 63, 64, 65, 131}) {
        if (T > entries) continue;
        Scene s(heads, T, 24, entries, static_cast<unsigned>(heads * 100 + T));
        expect_observes(s, 0.2f, {},
                        "heads " + std::to_string(heads) + " T " + std::to_string(T) + " N " +
                            std::to_string(entries));
      }
    }
  }
}

TEST_P(Observe, EveryHeadWidth) {
  for (std::int64_t d = 8; d <= kMostHeadWidth; d += d < 128 ? 8 : 64) {
    for (std::int64_t T : {1, 9}) {
      Scene s(3, T, d, 70, static_cast<unsigned>(d));
      expect_observes(s, 1.f / std::sqrt(static_cast<float>(d)), {},
                      "d " + std::to_string(d) + " T " + std::to_string(T));
    }
  }
}

TEST_P(Observe, StoredHalves) {
  for (KvType type : {KvType::f16, KvType::bf16}) {
    for (std::int64_t d : {24, 64}) {
      for (std::int64_t T : {1, 40}) {
        Scene s(3, T, d, 150, 77, type);
        s.page({64, 13});
        expect_observes(s, 0.1f, {},
                        "type " + std::to_string(static_cast<int>(type)) + " d " +
                            std::to_string(d) + " T " + std::to_string(T));
      }
    }
  }
}

TEST_P(Observe, EncodedPagesAmongOthers) {
  for (std::int64_t T : {1, 2, 3, 40}) {
    for (std::int64_t d : {24, 64, 128}) {
      Scene s(3, T, d, 300, 79, KvType::f16);
      s.page({64, 17, 64});
      s.encode_pages({NumberCodec::group8, std::nullopt, NumberCodec::channel4}, 9, 2);
      expect_observes(s, 0.1f, {true, 250}, "T " + std::to_string(T) + " d " + std::to_string(d));
    }
  }
}

TEST_P(Observe, KeysOfSomeChannels) {
  const std::vector<std::uint8_t> channels{0, 2, 3, 7, 11, 18, 23};
  for (std::int64_t T : {1, 2, 3, 40}) {
    for (const KvType type : {KvType::f32, KvType::f16}) {
      Scene s(3, T, 24, 300, 81, type);
      s.page({64, 17, 64});
      s.hold_channels(channels);
      expect_observes(s, 0.1f, {true, 250}, "T " + std::to_string(T));
    }
  }
}

TEST_P(Observe, MoreHeadsThanABlockHolds) {
  for (std::int64_t T : {1, 3}) {
    Scene s(29, T, 16, 90, 78);
    expect_observes(s, 0.25f, {}, "T " + std::to_string(T));
  }
}

TEST_P(Observe, WindowsAndFullSight) {
  for (std::int64_t T : {1, 30, 70}) {
    Scene s(2, T, 32, 200, 5);
    s.page({64, 31});
    for (bool causal : {true, false}) {
      for (std::int64_t window : {0, 1, 7, 64, 1000}) {
        expect_observes(s, 0.2f, {causal, window},
                        "causal " + std::to_string(causal) + " window " + std::to_string(window));
      }
    }
  }
}

TEST_P(Observe, PositionsInAnyOrder) {
  std::mt19937 generator(9);
  for (std::int64_t T : {1, 21, 60}) {
    Scene s(3, T, 32, 180, 6);
    std::shuffle(s.k_positions.begin(), s.k_positions.end(), generator);
    std::shuffle(s.q_positions.begin(), s.q_positions.end(), generator);
    expect_observes(s, 0.3f, {true, 0}, "shuffled");
    expect_observes(s, 0.3f, {true, 50}, "shuffled, window");
  }
}

TEST_P(Observe, LogMassIsAddedToTheScores) {
  for (std::int64_t T : {1, 33}) {
    Scene s(3, T, 64, 150, 10);
    s.log_mass = normal_numbers(150, 11, 2.f);
    s.log_mass[5] = -kInfinity;  // an entry of no mass
    s.page({64, 20});
    expect_observes(s, 0.125f, {}, "T " + std::to_string(T));
  }
}

TEST_P(Observe, NothingVisibleGivesZeros) {
  for (std::int64_t T : {1, 20, 40}) {
    Scene s(3, T, 64, 100, 8);
    for (std::int64_t t = 0; t < T; ++t) s.q_positions[size(t)] = t % 2 == 0 ? -1 : 99;
    expect_observes(s, 0.125f, {}, "every second query sees nothing");
    // Where lse says so, even entries that are in sight have no weight.
    Statistics got(s);
    const std::vector<float> nothing(size(3 * T), -kInfinity);
    const ObserveTask task = task_of(s, nothing, got);
    observe({&task, 1}, 64, 0.125f, {false, 0});
    for (const auto* each : got.all()) {
      for (float x : without_last(*each)) ASSERT_EQ(x, 0.f);
    }
  }
}

TEST_P(Observe, EqualScoresByHand) {
  for (std::int64_t T : {1, 30}) {
    Scene s(2, T, 8, 128, 40);
    std::fill(s.q.begin(), s.q.end(), 0.f);
    std::fill(s.row_weights.begin(), s.row_weights.end(), 1.f);
    Statistics got(s);
    const std::vector<float> lse(size(2 * T), std::log(128.f));
    const ObserveTask task = task_of(s, lse, got);
    observe({&task, 1}, 8, 1.f, {false, 0});
    for (float x : without_last(got.weights)) ASSERT_NEAR(x, 1.0 / 128, 1e-8);
    for (float x : without_last(got.column_most)) ASSERT_NEAR(x, 1.0 / 128, 1e-8);
    for (float x : without_last(got.column_sums))
      ASSERT_NEAR(x, static_cast<double>(T) / 128, 1e-6);
    for (float x : without_last(got.entropy)) ASSERT_NEAR(x, 4.8520303, 1e-5);
    // 43 of the 128 entries are divisible by 3.
    for (std::int64_t r = 0; r < 2 * T; ++r)
      ASSERT_NEAR(got.row_sums[size(3 * r)], 43.0 / 128, 1e-6);
  }
}

TEST_P(Observe, RowsOfWhatAttendedSumToOneAndEntropyIsTheIdentity) {
  for (std::int64_t T : {1, 3, 50}) {
    Scene s(3, T, 64, 300, 14);
    s.page({64, 17});
    for (PageView& page : s.pages) page.v = page.k;
    std::vector<float> out(s.q.size()), lse(size(3 * T));
    const AttendTask attended{s.q.data(), 3,      T,  T * 64,    64, s.q_positions.data(), s.pages,
                              out.data(), T * 64, 64, lse.data()};
    attend({&attended, 1}, 64, 0.125f, {});
    std::fill(s.columns.begin(), s.columns.begin() + 300, 1.f);
    Statistics got(s);
    ObserveTask task = task_of(s, lse, got);
    task.row_weights = nullptr;
    observe({&task, 1}, 64, 0.125f, {});
    const Oracle want = oracle(s, 0.125, {}, {});
    std::vector<double> columns(size(3 * 300), 0);
    for (std::int64_t r = 0; r < 3 * T; ++r) {
      double sum = 0, identity = lse[size(r)];
      for (std::int64_t e = 0; e < 300; ++e) {
        const double a = got.weights[size(r * 300 + e)];
        sum += a;
        columns[size(r / T * 300 + e)] += a;
        if (a > 0) identity -= a * want.scores[size(r * 300 + e)];
      }
      ASSERT_NEAR(sum, 1, 2e-6);
      ASSERT_NEAR(got.row_sums[size(3 * r)], 1, 2e-6);
      ASSERT_NEAR(got.entropy[size(r)], identity, 1e-4);
    }
    EXPECT_LT(relative_error(without_last(got.column_sums), columns), 1e-6);
  }
}

TEST_P(Observe, ABandOfAWiderSoftmax) {
  for (std::int64_t T : {1, 70}) {
    Scene s(3, T, 32, 200, 15);
    const Visibility all;
    expect_observes(s, 0.3f, {true, 32}, "recent part of full attention", &all);
  }
}

TEST_P(Observe, AnyPagingGivesTheSame) {
  for (std::int64_t T : {1, 3, 70}) {
    Scene s(3, T, 64, 300, 13);
    for (const auto& sizes : std::vector<std::vector<std::int64_t>>{
             {64}, {1, 64, 17}, {63}, {8}, {0, 5, 0, 0, 2}, {1, 2}}) {
      s.page(sizes);
      expect_observes(s, 0.125f, {true, 222}, "pages of " + std::to_string(sizes[0]));
    }
  }
}

TEST_P(Observe, AnyThreadsGiveTheSameBits) {
  for (std::int64_t T : {1, 70}) {
    std::vector<Scene> scenes;
    scenes.emplace_back(3, T, 64, 1500, 16);
    scenes.emplace_back(1, T, 64, 400, 17, KvType::f16);
    scenes.emplace_back(3, 0, 64, 100, 18);
    scenes[1].page({3, 1});
    std::vector<Statistics> first;
    for (int threads : {1, 2, 3, 7}) {
      at::set_num_threads(threads);
      std::vector<std::vector<float>> lse;
      std::vector<Statistics> got;
      for (const Scene& s : scenes) {
        lse.emplace_back(size(s.heads * s.T), 8.f);
        got.emplace_back(s);
      }
      std::vector<ObserveTask> tasks;
      for (std::size_t i = 0; i < scenes.size(); ++i)
        tasks.push_back(task_of(scenes[i], lse[i], got[i]));
      observe(tasks, 64, 0.125f, {});
      if (first.empty()) first = got;
      for (std::size_t i = 0; i < scenes.size(); ++i)
        expect_equal(got[i], first[i], std::to_string(threads) + " threads");
    }
    EXPECT_GT(*std::max_element(first[0].entropy.begin(), first[0].entropy.end()), 0.f);
  }
}

TEST_P(Observe, BlocksOfQueriesAddUp) {
  Scene s(3, 60, 64, 200, 19);
  const Oracle want = oracle(s, 0.125, {}, {});
  Statistics got(s);
  // Row outputs are contiguous, so a block of times is a task a head.
  for (std::int64_t begin : {0, 1, 26}) {
    const std::int64_t end = begin == 0 ? 1 : begin == 1 ? 26 : 60;
    std::vector<ObserveTask> tasks;
    for (std::int64_t h = 0; h < 3; ++h) {
      ObserveTask task = task_of(s, want.lse, got);
      const std::int64_t row = h * 60 + begin;
      task.q += row * 64;
      task.heads = 1;
      task.T = end - begin;
      task.q_positions += begin;
      task.lse += row;
      task.column_sums += h * 200;
      task.row_weights += begin;
      task.row_sums += row * s.functionals;
      task.entropy += row;
      task.weights += row * 200;
      task.column_most += h * 200;
      tasks.push_back(task);
    }
    observe(tasks, 64, 0.125f, {});
  }
  expect_near(got, want, 5e-6, "three blocks");
}

TEST_P(Observe, SegmentsOfOneSoftmaxAddUp) {
  for (std::int64_t T : {1, 40}) {
    Scene s(2, T, 64, 200, 20);
    s.page({64, 9});
    const Oracle want = oracle(s, 0.125, {}, {});
    std::vector<float> row_sums(size(2 * T * 3), 0.f), entropy(size(2 * T), 0.f);
    std::vector<double> columns(size(2 * 200));
    for (std::size_t p = 0, begin = 0; p < s.pages.size(); begin += s.pages[p].entries, ++p) {
      const auto n = static_cast<std::size_t>(s.pages[p].entries);
      std::vector<float> own(2 * n, 0.f), f;
      for (std::size_t j = 0; j < 3; ++j) {
        const auto from = s.columns.begin() + static_cast<std::ptrdiff_t>(j * 200 + begin);
        f.insert(f.end(), from, from + static_cast<std::ptrdiff_t>(n));
      }
      Statistics unused(s);
      ObserveTask task = task_of(s, want.lse, unused);
      task.pages = task.pages.subspan(p, 1);
      task.column_sums = own.data();
      task.columns = f.data();
      task.row_sums = row_sums.data();
      task.entropy = entropy.data();
      task.weights = nullptr;
      observe({&task, 1}, 64, 0.125f, {});
      for (std::size_t i = 0; i < 2 * n; ++i) columns[i / n * 200 + begin + i % n] = own[i];
    }
    EXPECT_LT(relative_error(columns, want.column_sums), 5e-6);
    EXPECT_LT(relative_error(row_sums, want.row_sums), 5e-6);
    EXPECT_LT(relative_error(entropy, want.entropy), 5e-6);
  }
}

TEST_P(Observe, EachOutputAloneIsTheSame) {
  for (std::int64_t T : {2, 30}) {
    Scene s(3, T, 64, 150, 21);
    const Oracle want = oracle(s, 0.125, {}, {});
    Statistics all(s), alone(s);
    const ObserveTask everything = task_of(s, want.lse, all);
    observe({&everything, 1}, 64, 0.125f, {});
    for (int only = 0; only < 5; ++only) {
      ObserveTask task = task_of(s, want.lse, alone);
      if (only != 0) task.column_sums = nullptr;
      if (only != 1) task.row_sums = nullptr;
      if (only != 2) task.entropy = nullptr;
      if (only != 3) task.weights = nullptr;
      if (only != 4) task.column_most = nullptr;
      observe({&task, 1}, 64, 0.125f, {});
    }
    expect_equal(alone, all, "one at a time");
  }
}

TEST_P(Observe, StridesOfTimeFirstLayouts) {
  for (std::int64_t T : {1, 7, 40}) {
    Scene s(3, T, 32, 90, 30);
    const Oracle want = oracle(s, 0.2, {}, {});
    Statistics dense(s), strided(s);
    ObserveTask task = task_of(s, want.lse, dense);
    observe({&task, 1}, 32, 0.2f, {});
    const std::int64_t row = 32 + 5;
    std::vector<float> q(size(T * 3 * row), kNan);  // [T,heads,d + 5]
    for (std::int64_t r = 0; r < 3 * T; ++r)
      std::copy_n(s.q.begin() + r * 32, 32, q.begin() + (r % T * 3 + r / T) * row);
    task = task_of(s, want.lse, strided);
    task.q = q.data();
    task.q_head_stride = row;
    task.q_time_stride = 3 * row;
    observe({&task, 1}, 32, 0.2f, {});
    expect_equal(strided, dense, "T " + std::to_string(T));
  }
}

TEST_P(Observe, LargeScores) {
  for (std::int64_t T : {1, 30}) {
    Scene s(3, T, 64, 100, 32);
    for (float& x : s.q) x *= 100.f;
    const Oracle want = oracle(s, 1.0, {}, {});
    Statistics got(s);
    const ObserveTask task = task_of(s, want.lse, got);
    observe({&task, 1}, 64, 1.f, {});
    // Scores reach thousands, so that their own rounding in single precision shows.
    EXPECT_LT(relative_error(without_last(got.weights), want.weights), 2e-3);
    for (std::size_t r = 0; r < want.entropy.size(); ++r)
      ASSERT_NEAR(got.entropy[r], want.entropy[r], 5e-3);
  }
}

TEST_P(Observe, ABrokenKeyReachesOnlyTheQueriesThatSeeIt) {
  for (std::int64_t T : {2, 40}) {
    Scene s(3, T, 64, 300, 33);
    s.k[(300 - 1) * 64 + 3] = std::nan("");
    s.page({64});
    Statistics got(s);
    std::vector<float> lse(size(3 * T), 5.f);
    for (std::int64_t h = 0; h < 3; ++h)
      lse[size(h * T + T - 1)] = kNan;  // as attend would give it
    const ObserveTask task = task_of(s, lse, got);
    observe({&task, 1}, 64, 0.125f, {});
    for (std::int64_t r = 0; r < 3 * T; ++r) {
      const bool broken = r % T == T - 1;
      EXPECT_EQ(std::isnan(got.entropy[size(r)]), broken);
      EXPECT_EQ(std::isnan(got.row_sums[size(3 * r + 1)]), broken);
      for (std::int64_t e = 0; e < 300; ++e)
        ASSERT_EQ(std::isnan(got.weights[size(r * 300 + e)]), broken);
    }
    for (float x : without_last(got.column_most)) ASSERT_TRUE(x >= 0) << "NaN is passed over";
  }
}

TEST_P(Observe, ReadsAndWritesNothingBeyondThePages) {
  for (std::int64_t T : {1, 30}) {
    for (std::int64_t entries : {1, 13, 64}) {
      Scene s(2, T, 24, entries, 35);
      for (auto& p : s.q_positions) p = entries;
      const Oracle want = oracle(s, 0.2, {}, {});
      Statistics got(s);
      const auto bytes = [](const std::vector<float>& x) {
        std::vector<std::uint8_t> b(x.size() * sizeof(float));
        std::memcpy(b.data(), x.data(), b.size());
        return b;
      };
      const AtTheEnd keys(s.memory[0]), queries(bytes(s.q)), columns(bytes(s.columns));
      s.pages[0].k = keys.data();
      ObserveTask task = task_of(s, want.lse, got);
      task.q = reinterpret_cast<const float*>(queries.data());
      task.columns = reinterpret_cast<const float*>(columns.data());
      observe({&task, 1}, 24, 0.2f, {});
      expect_near(got, want, 5e-6, "entries " + std::to_string(entries));
    }
  }
}

TEST_P(Observe, WrongShapesAreRefused) {
  Scene s(1, 1, 64, 10, 34);
  Statistics got(s);
  const std::vector<float> lse(1, 0.f);
  const ObserveTask right = task_of(s, lse, got);
  const auto refuses = [](const ObserveTask& task, std::int64_t d, const Visibility& visibility) {
    EXPECT_THROW(observe({&task, 1}, d, 1.f, visibility), Error);
  };
  for (std::int64_t d : {0, -8, 4, 12, 264}) refuses(right, d, {});
  refuses(right, 64, {true, -1});
  ObserveTask task = right;
  task.T = -1;
  refuses(task, 64, {});
  task = right;
  task.heads = -1;
  refuses(task, 64, {});
  task = right;
  task.functionals = -1;
  refuses(task, 64, {});
  task = right;
  task.columns = nullptr;
  refuses(task, 64, {});
  task = right;
  task.lse = nullptr;
  refuses(task, 64, {});
  s.pages[0].entries = 65;
  refuses(right, 64, {});
  for (const auto* each : {&got.column_sums, &got.row_sums, &got.entropy, &got.column_most}) {
    for (float x : without_last(*each)) EXPECT_EQ(x, 0.f);
  }
}

}  // namespace
}  // namespace mneme::kernels
