#include "mneme/decode/sampler.h"

#include "mneme/core/error.h"

#include <ATen/ATen.h>

#include <cmath>
#include <gtest/gtest.h>
#include <limits>

namespace mneme {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
const std::vector<float> kLogits = {0.5f, 2.0f, -1.0f, 2.0f, -kInfinity, 1.0f};

std::vector<double> probabilities(const std::vector<float>& logits, double temperature = 1) {
  std::vector<double> out;
  double sum = 0;
  for (auto x : logits) out.push_back(std::exp(x / temperature)), sum += out.back();
  for (auto& x : out) x /= sum;
  return out;
}

TEST(MostLikely, GivesTheSmallestIdAndItsProbability) {
  const auto pick = decode::most_likely(kLogits);
  EXPECT_EQ(pick.id, 1);
  EXPECT_NEAR(pick.log_probability, std::log(probabilities(kLogits)[1]), 1e-6);
  EXPECT_NEAR(decode::most_likely(std::vector<float>{1e30f, 0.f}).log_probability, 0, 1e-12);
  EXPECT_NEAR(decode::most_likely(std::vector<float>(1000, -5e4f)).log_probability, -std::log(1000),
              1e-2);
}

TEST(Sampler, WithoutAChainIsGreedy) {
  for (const auto* chain : {"temperature(0)", "top_k(1) | temperature(0.01)",
                            "top_k(40) | top_p(0.9) | temperature(0)"}) {
    Sampler sampler(parse_chain(chain), 7);
    for (int i = 0; i < 10; ++i) EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 2}), 1) << chain;
  }
  Sampler greedy({}, 3);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(greedy.sample(kLogits), 1);
  EXPECT_NEAR(greedy.last_log_probability(), std::log(probabilities(kLogits)[1]), 1e-6);
}

TEST(Sampler, DrawsByTheProbabilities) {
  constexpr int kDraws = 20000;
  Sampler sampler(parse_chain("temperature(1.5)"), 11);
  std::vector<int> counts(kLogits.size());
  const auto own = probabilities(kLogits), expected = probabilities(kLogits, 1.5);
  for (int i = 0; i < kDraws; ++i) {
    const auto id = static_cast<std::size_t>(sampler.sample(kLogits));
    ++counts[id];
    ASSERT_NEAR(sampler.last_log_probability(), std::log(own[id]), 1e-6)
        << "by the model, not by the stages";
  }
  EXPECT_EQ(counts[4], 0) << "forbidden";
  double chi2 = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (expected[i] > 0)
      chi2 += std::pow(counts[i] - kDraws * expected[i], 2) / (kDraws * expected[i]);
  }
  EXPECT_LT(chi2, 23.5);  // 4 degrees of freedom: p < 0.0001 above
}

TEST(Sampler, ASeedReproduces) {
  const auto draw = [](std::uint64_t seed) {
    Sampler sampler(parse_chain("temperature(2)"), seed);
    std::vector<std::int32_t> out;
    for (int i = 0; i < 50; ++i) out.push_back(sampler.sample(kLogits));
    return out;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(Sampler, PassesTheHistoryOn) {
  Sampler sampler(parse_chain("repetition_penalty(10) | temperature(0)"));
  EXPECT_EQ(sampler.sample(std::vector<float>{3, 2, 1}), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{3, 2, 1}, std::vector<std::int32_t>{0}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{3, 2, 1}, std::vector<std::int32_t>{0, 1, 0}), 2);
}

TEST(Sampler, TakesTensors) {
  Sampler sampler({});
  EXPECT_EQ(sampler.sample(at::tensor({1.0, 5.0, 2.0}, at::kDouble)), 1);
  EXPECT_EQ(sampler.sample(at::tensor({1.0f, 5.0f, 2.0f}).to(at::kBFloat16).view({1, 3})), 1);
  EXPECT_EQ(sampler.sample(at::arange(8, at::kFloat).view({4, 2}).t()[1]), 3)
      << "a view with steps";
  EXPECT_THROW((void)sampler.sample(at::zeros({2, 3})), Error);
  EXPECT_THROW((void)sampler.sample(at::zeros({0})), Error);
}

TEST(Sampler, RefusesWhatIsNotFinite) {
  for (const auto* chain : {"", "temperature(1)"}) {
    Sampler sampler(*chain ? parse_chain(chain) : Chain{});
    for (const auto& logits : {std::vector<float>{1, kNaN, 2},
                               {kNaN, 1},
                               {kInfinity, 1},
                               {-kInfinity, -kInfinity},
                               {}}) {
      try {
        (void)sampler.sample(logits);
        ADD_FAILURE() << chain;
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), Errc::invalid);
      }
    }
  }
  EXPECT_THROW(Sampler(parse_chain("temprature(1)")), Error);
}

TEST(SamplerChain, IsInTheOrderOfLlamaCpp) {
  EXPECT_EQ(print(decode::sampler_chain({})), "");
  EXPECT_EQ(print(decode::sampler_chain({.temperature = 0.7,
                                         .top_k = 40,
                                         .top_p = 0.9,
                                         .min_p = 0.05,
                                         .repetition_penalty = 1.1,
                                         .repetition_window = 32})),
            "repetition_penalty(penalty=1.1, window=32) | top_k(k=40) | top_p(p=0.9) | "
            "min_p(p=0.05) | temperature(value=0.7)");
  EXPECT_EQ(print(decode::sampler_chain({.temperature = 1,
                                         .top_k = 0,
                                         .top_p = 1,
                                         .min_p = 0,
                                         .repetition_penalty = 1,
                                         .repetition_window = 64})),
            "temperature(value=1)");
  EXPECT_EQ(print(decode::sampler_chain({.temperature = 0,
                                         .top_k = 40,
                                         .top_p = 0.9,
                                         .min_p = 0,
                                         .repetition_penalty = 1,
                                         .repetition_window = 64})),
            "")
      << "greedy needs no stage";
  EXPECT_EQ(print(decode::sampler_chain({.temperature = 0,
                                         .top_k = 40,
                                         .top_p = 1,
                                         .min_p = 0,
                                         .repetition_penalty = 1.5,
                                         .repetition_window = 64})),
            "repetition_penalty(penalty=1.5, window=64) | temperature(value=0)");
  EXPECT_NO_THROW(Sampler(decode::sampler_chain({.temperature = 0.7,
                                                 .top_k = 40,
                                                 .top_p = 0.9,
                                                 .min_p = 0.05,
                                                 .repetition_penalty = 1.1,
                                                 .repetition_window = 32})));
}

}  // namespace
}  // namespace mneme
