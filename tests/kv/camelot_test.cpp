// Slots in which tokens are merged, against a plain computation token by token.
#include "mneme/core/registry.h"
#include "mneme/kv/plan.h"
#include "mneme/mixers/kv_store.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "../tensor_check.h"
#include "../tiny_models.h"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <numeric>

namespace mneme {
namespace {

constexpr std::int64_t kHeads = 2, kGroup = 2, kWidth = 16;
constexpr double kScale = 0.35, kTheta = 500.0;
using Numbers = std::vector<double>;

Numbers numbers(const at::Tensor& x) {
  const auto y = x.to(at::kDouble).contiguous();
  return {y.const_data_ptr<double>(), y.const_data_ptr<double>() + y.numel()};
}

Numbers turned(const Numbers& x, std::int64_t position) {
  Numbers out(x);
  const auto half = x.size() / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const auto angle =
        static_cast<double>(position) *
        std::pow(kTheta, -2.0 * static_cast<double>(i) / static_cast<double>(x.size()));
    out[i] = x[i] * std::cos(angle) - x[i + half] * std::sin(angle);
    out[i + half] = x[i + half] * std::cos(angle) + x[i] * std::sin(angle);
  }
  return out;
}

double product(const Numbers& a, const Numbers& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// One KV head and the query heads that look at it.
class Plain {
 public:
  struct Options {
    std::size_t slots, window;
    double rho;
    bool zero = false, mass = false;
  };
  struct Slot {
    std::vector<std::size_t> tokens;  ///< that joined in it; none: empty
    std::size_t touched = 0;
  };
  explicit Plain(const Options& o) : o_(o), slots(o.slots) {}

  /// A token, and what each of its queries reads.
  std::vector<Numbers> step(const Numbers& k, const Numbers& v, const std::vector<Numbers>& q) {
    keys_.push_back(k);
    values_.push_back(v);
    const auto i = keys_.size() - 1, begin = i / o_.window * o_.window, L = o_.window;
    // The slots do not change before the window is full.
    std::size_t nearest = slots.size();
    double most = -2;
    for (std::size_t m = 0; m < slots.size(); ++m) {
      if (slots[m].tokens.empty()) continue;
      const auto mean = mean_of(slots[m], keys_);
      const auto cosine = product(k, mean) / std::sqrt(product(k, k) * product(mean, mean));
      if (cosine > most) {
        most = cosine;
        nearest = m;
      }
    }
    nearest_.push_back(nearest);
    cosine_.push_back(most);
    if (nearest < slots.size() && std::find(found_.begin(), found_.end(), nearest) == found_.end())
      found_.push_back(nearest);
    std::vector<Numbers> out;
    for (const auto& query : q) {
      const auto x = turned(query, static_cast<std::int64_t>(L + i - begin));
      std::vector<std::pair<double, Numbers>> read;
      for (auto j = begin; j <= i; ++j)
        read.emplace_back(
            kScale * product(x, turned(keys_[j], static_cast<std::int64_t>(L + j - begin))),
            values_[j]);
      for (std::size_t r = 0; r < found_.size(); ++r) {
        const auto& slot = slots[found_[r]];
        const auto place = o_.zero ? 0 : static_cast<std::int64_t>(L - 1 - r);
        read.emplace_back(kScale * product(x, turned(mean_of(slot, keys_), place)) +
                              (o_.mass ? std::log(static_cast<double>(slot.tokens.size())) : 0.0),
                          mean_of(slot, values_));
      }
      double sum = 0;
      Numbers y(kWidth);
      for (const auto& [score, value] : read) sum += std::exp(score);
      for (const auto& [score, value] : read) {
        for (std::size_t d = 0; d < kWidth; ++d) y[d] += std::exp(score) / sum * value[d];
      }
      out.push_back(y);
    }
    if (i + 1 == begin + L) write(begin);
    return out;
  }

  Options o_;
  std::vector<Slot> slots;
  std::size_t overwritten = 0;  ///< tokens that slots stood for when they were given to others

 private:
  static Numbers mean_of(const Slot& slot, const std::vector<Numbers>& of) {
    Numbers mean(kWidth);
    for (const auto t : slot.tokens) {
      for (std::size_t d = 0; d < kWidth; ++d)
        mean[d] += of[t][d] / static_cast<double>(slot.tokens.size());
    }
    return mean;
  }
  void write(std::size_t begin) {
    if (slots.empty()) return;
    std::vector<std::size_t> novel;
    for (auto i = begin; i < begin + o_.window; ++i) {
      if (nearest_[i] < slots.size() && cosine_[i] > o_.rho) {
        slots[nearest_[i]].tokens.push_back(i);
        slots[nearest_[i]].touched = i + 1;
      } else {
        novel.push_back(i);
      }
    }
    for (const auto i : novel) {
      auto& oldest =
          *std::min_element(slots.begin(), slots.end(),
                            [](const auto& a, const auto& b) { return a.touched < b.touched; });
      overwritten += oldest.tokens.size();
      oldest = {{i}, i + 1};
    }
    found_.clear();
  }

  std::vector<Numbers> keys_, values_;
  std::vector<std::size_t> nearest_, found_;
  std::vector<double> cosine_;
};

class CamelotTest : public ::testing::Test {
 protected:
  static std::unique_ptr<KvStore> store(const std::string& spec, std::int64_t rows = 1) {
    const KvShape shape{kHeads, kWidth, kWidth,
                        std::make_shared<Rope>(kWidth, kTheta, RopePairs::halves)};
    const auto stage = registry().make<KvStage>(spec);
    return dynamic_cast<const RetrieveStage&>(*stage).store(shape, 0, rows);
  }
  static std::unique_ptr<KvStore> as_kv(std::unique_ptr<StateStore> from) {
    return std::unique_ptr<KvStore>(&dynamic_cast<KvStore&>(*from.release()));
  }
  struct Tokens {
    at::Tensor k, v, q;
    [[nodiscard]] Tokens part(std::int64_t begin, std::int64_t n) const {
      return {k.narrow(2, begin, n), v.narrow(2, begin, n), q.narrow(2, begin, n)};
    }
  };
  /// Keys around twelve directions, so that some are alike.
  Tokens tokens(std::int64_t T, std::int64_t B = 1) {
    auto k = check::normal({B, kHeads, T, kWidth}, ++seed_);
    Generator generator(++seed_);
    for (std::int64_t b = 0; b < B; ++b) {
      for (std::int64_t h = 0; h < kHeads; ++h) {
        for (std::int64_t t = 0; t < T; ++t)
          k[b][h][t].mul_(0.4).add_(check::normal({kWidth}, 7000 + generator.next() % 12));
      }
    }
    return {k, check::normal({B, kHeads, T, kWidth}, ++seed_),
            check::normal({B, kHeads * kGroup, T, kWidth}, ++seed_)};
  }
  static Partial step(KvStore& to, const Tokens& x) {
    const auto B = x.k.size(0), T = x.k.size(2);
    Call call;
    call.positions = check::positions(B, T, to.seen(0));
    call.compute = Compute::f32;
    to.append(x.k, x.v, call);
    const auto out = to.attend(x.q, call, kScale, true);
    to.settle();
    return out;
  }
  static std::string save(const KvStore& held) {
    std::string out;
    ByteWriter writer(&out);
    held.save(writer);
    return out;
  }
  static std::unique_ptr<KvStore> load(std::string_view bytes) {
    auto out = registry().make<StateStore>("camelot_kv");
    ByteReader reader(bytes);
    out->load(reader);
    return as_kv(std::move(out));
  }

  std::uint64_t seed_ = 100;
  const c10::NoGradGuard no_gradient_;
};

TEST_F(CamelotTest, EqualsAPlainComputation) {
  struct Case {
    std::string spec;
    Plain::Options options;
  };
  for (const auto& [spec, options] :
       {Case{"camelot(slots=20, rho=0.8, window=8)", {20, 8, 0.8}},
        Case{"camelot(slots=20, rho=0.8, window=8, place=zero, mass=true)",
             {20, 8, 0.8, true, true}},
        Case{"camelot(slots=100, rho=0.7, window=70)", {100, 70, 0.7}},
        Case{"camelot(slots=11, rho=1.5, window=8)", {11, 8, 1.5}},
        Case{"camelot(slots=5, rho=0.8, window=8)", {5, 8, 0.8}},
        Case{"camelot(slots=0, window=8)", {0, 8, 0.8}}}) {
    const auto held = store(spec);
    std::vector<Plain> heads(kHeads, Plain(options));
    std::int64_t seen = 0;
    for (const std::int64_t T : {5, 30, 1, 1, 1, 100, 2, 60}) {
      const auto x = tokens(T);
      const auto got = step(*held, x);
      seen += T;
      for (std::int64_t t = 0; t < T; ++t) {
        for (std::int64_t h = 0; h < kHeads; ++h) {
          std::vector<Numbers> q;
          for (std::int64_t g = 0; g < kGroup; ++g) q.push_back(numbers(x.q[0][h * kGroup + g][t]));
          const auto want = heads[static_cast<std::size_t>(h)].step(numbers(x.k[0][h][t]),
                                                                    numbers(x.v[0][h][t]), q);
          for (std::int64_t g = 0; g < kGroup; ++g) {
            EXPECT_TRUE(check::close(got.out[0][h * kGroup + g][t],
                                     at::tensor(want[static_cast<std::size_t>(g)], at::kDouble),
                                     1e-5))
                << spec << ", token " << seen - T + t;
          }
        }
      }
    }
    EXPECT_EQ(held->seen(0), seen);
    double filled = 0;
    for (const auto& head : heads) {
      std::size_t merged = 0, tokens = 0;
      for (const auto& slot : head.slots) {
        tokens += slot.tokens.size();
        merged += slot.tokens.size() > 1;
        filled += slot.tokens.empty() ? 0 : 1.0 / kHeads;
      }
      const auto written = static_cast<std::size_t>(seen) / options.window * options.window;
      if (options.slots > 0) {
        EXPECT_EQ(tokens + head.overwritten, written) << spec;
      }
      if (options.rho < 1 && options.slots >= 20) {
        EXPECT_GT(merged, 5u) << spec << ": some are means";
      }
    }
    EXPECT_DOUBLE_EQ(held->kept(0),
                     filled + static_cast<double>(seen % static_cast<std::int64_t>(options.window)))
        << spec;
    EXPECT_EQ(held->allocated_bytes(), store(spec)->allocated_bytes()) << "bytes do not grow";
  }
}

TEST_F(CamelotTest, AWindowMayComeInAnyPieces) {
  const auto* spec = "camelot(slots=20, rho=0.8, window=8)";
  const auto x = tokens(90);
  const auto whole = store(spec);
  const auto want = step(*whole, x).out;
  for (const std::int64_t n : {1, 3, 8, 30}) {
    const auto cut = store(spec);
    std::vector<at::Tensor> out;
    for (std::int64_t at = 0; at < 90; at += n)
      out.push_back(step(*cut, x.part(at, std::min(n, 90 - at))).out);
    EXPECT_TRUE(check::close(at::cat(out, 2), want, 1e-5)) << n;
  }
}

TEST_F(CamelotTest, SavesForksJoinsRewinds) {
  const auto* spec = "camelot(slots=20, rho=0.8, window=8)";
  const auto held = store(spec), same = store(spec), other = store(spec);
  const auto x = tokens(61), y = tokens(20), z = tokens(20), w = tokens(3);
  (void)step(*held, x);
  (void)step(*same, x);
  (void)step(*other, z);
  const auto bytes = save(*held);
  const auto loaded = load(bytes);
  EXPECT_EQ(save(*loaded), bytes);
  auto child = as_kv(held->fork());
  (void)step(*child, z);
  EXPECT_EQ(save(*held), bytes) << "a fork leaves its parent alone";
  const auto joined = as_kv(held->concat({other.get()})), swapped = as_kv(joined->select({1, 0}));
  // Into the window, over some that found slots of their own.
  const auto before = as_kv(held->fork());
  (void)step(*before, w);
  EXPECT_EQ(before->seen(0), 64) << "the window is written";
  check::expect_error(Errc::unsupported, "merged", [&] { before->rewind(1); });
  const auto back = as_kv(held->fork());
  (void)step(*back, w.part(0, 2));
  back->rewind(2);
  const auto want = step(*same, y).out;
  EXPECT_TRUE(check::identical(step(*held, y).out, want));
  EXPECT_TRUE(check::identical(step(*loaded, y).out, want));
  EXPECT_TRUE(check::identical(step(*back, y).out, want));
  const auto both = [&](const at::Tensor& a) { return a.expand({2, -1, -1, -1}).contiguous(); };
  const auto got = step(*swapped, {both(y.k), both(y.v), both(y.q)}).out;
  EXPECT_TRUE(check::close(got.narrow(0, 1, 1), want, 1e-6));
  EXPECT_TRUE(check::close(got.narrow(0, 0, 1), step(*other, y).out, 1e-6));
  swapped->reset({true, false});
  EXPECT_EQ(swapped->kept(0), 0);
  check::expect_error(Errc::unsupported, "merged", [&] { (void)held->read(0, 0, 81); });
  EXPECT_TRUE(check::identical(held->read(0, 80, 81).keys, y.k[0].narrow(1, 19, 1)));
}

TEST_F(CamelotTest, RandomSlotsAreOverwrittenReproducibly) {
  const auto* spec = "camelot(slots=9, rho=2, window=8, replace=random)";
  const auto a = store(spec), b = store(spec), oldest = store("camelot(slots=9, rho=2, window=8)");
  const auto x = tokens(100);
  const auto want = step(*a, x).out;
  EXPECT_TRUE(check::identical(step(*b, x).out, want));
  EXPECT_FALSE(check::close(step(*oldest, x).out, want, 1e-3));
}

TEST_F(CamelotTest, DamagedBytesNeverCrash) {
  const auto held = store("camelot(slots=12, rho=0.8, window=8)");
  (void)step(*held, tokens(60));
  const auto bytes = save(*held);
  for (std::size_t n = 0; n < bytes.size(); n += n < 300 || bytes.size() - n < 300 ? 1 : 97)
    check::expect_error(Errc::corrupt, "",
                        [&] { (void)load(std::string_view(bytes).substr(0, n)); });
  Generator generator(11);
  int refused = 0, usable = 0;
  for (int round = 0; round < 600; ++round) {
    auto damaged = bytes;
    const auto range = round % 2 ? damaged.size() : std::min<std::size_t>(damaged.size(), 200);
    for (auto flips = 1 + generator.next() % 3; flips > 0; --flips)
      damaged[generator.next() % range] ^= static_cast<char>(1 << generator.next() % 8);
    try {
      auto loaded = load(damaged);
      if (loaded->rows() == 1 && loaded->seen(0) < 100000) (void)step(*loaded, tokens(30));
      (void)save(*loaded);
      ++usable;
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
  EXPECT_GT(usable, 20);
}

TEST(Camelot, ATextGrowsPastTheContextInBoundedBytes) {
  const c10::NoGradGuard no_gradient;
  const check::TinyModel narrow(
      "decoder(vocabulary=50, model=32, layers=2, context=64, mixer=softmax(heads=4, kv_heads=2, "
      "head=8), feed_forward=glu(hidden=48))");
  auto state = narrow.model->start(1);
  use_plan(state, std::make_shared<KvPlan>(parse_chain("camelot(slots=30, window=16)")));
  const auto ids = check::random_ids(1, 300, 50, 3);
  EXPECT_TRUE(at::isfinite(narrow.logits(ids, state)).all().item<bool>());
  const auto usage = kv_usage(state);
  EXPECT_LE(usage.kept, 30 + 16);
  auto loaded = State::load(state.save());
  EXPECT_TRUE(check::identical(narrow.logits(ids, loaded), narrow.logits(ids, state)));
}

}  // namespace
}  // namespace mneme
