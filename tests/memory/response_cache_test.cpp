#include "mneme/memory/response_cache.h"

#include "mneme/core/generator.h"
#include "mneme/core/registry.h"
#include "mneme/memory/cached_answers.h"

#include "tests/memory/memory_fixture.h"
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

namespace mneme {
namespace {

using Observations = std::vector<CacheObservation>;

std::shared_ptr<const ReusePolicy> policy(const std::string& spec) {
  return registry().make<ReusePolicy>(spec);
}

/// Similarities between `least` and 1 that are right by the curve.
Observations drawn(std::size_t n, double least, double threshold, double slope, Generator& g) {
  Observations out;
  for (std::size_t i = 0; i < n; ++i) {
    const double s = least + (1 - least) * g.uniform();
    out.push_back({s, g.uniform() < 1 / (1 + std::exp(-slope * (s - threshold)))});
  }
  return out;
}

/// The maximum of the likelihood by bisection alone: for a slope, the intercept at which the residuals sum to 0; the slope
/// at which, with that intercept, they do so weighted by similarity.
struct Bisected {
  double threshold = 0, slope = 0;
  explicit Bisected(const Observations& all) {
    const auto residual = [&](long double b, long double gamma, bool weighted) {
      long double sum = 0;
      for (const auto& o : all) {
        const long double p = 1 / (1 + std::exp(-(b + gamma * o.similarity)));
        sum += ((o.right ? 1 : 0) - p) * (weighted ? o.similarity : 1);
      }
      return sum;
    };
    const auto intercept = [&](long double gamma) {
      long double low = -5000, high = 5000;
      for (int i = 0; i < 120; ++i) {
        const auto middle = (low + high) / 2;
        (residual(middle, gamma, false) > 0 ? low : high) = middle;
      }
      return low;
    };
    long double low = 0, high = 2000;
    for (int i = 0; i < 90; ++i) {
      const auto middle = (low + high) / 2;
      (residual(intercept(middle), middle, true) > 0 ? low : high) = middle;
    }
    slope = static_cast<double>(low);
    threshold = static_cast<double>(-intercept(low) / low);
  }
};

TEST(ThresholdFit, IsTheMaximumOfTheLikelihood) {
  Generator g(7);
  int compared = 0;
  for (const std::size_t n : {12, 40, 150}) {
    for (const double slope : {8.0, 30.0, 90.0}) {
      const auto all = drawn(n, 0.5, 0.8, slope, g);
      const auto fit = fit_threshold(all);
      if (!fit || fit->separated) continue;
      const Bisected wanted(all);
      EXPECT_NEAR(fit->threshold, std::clamp(wanted.threshold, 0.0, 1.0), 1e-6)
          << n << " " << slope;
      EXPECT_NEAR(fit->slope / wanted.slope, 1, 1e-6) << n << " " << slope;
      ++compared;
    }
  }
  EXPECT_GE(compared, 6);
}

TEST(ThresholdFit, VarianceIsThatOfTheBootstrap) {
  Generator g(11);
  const auto all = drawn(800, 0.5, 0.8, 25, g);
  const auto fit = fit_threshold(all);
  ASSERT_TRUE(fit && !fit->separated);
  double sum = 0, squares = 0;
  constexpr int kRounds = 2000;
  for (int round = 0; round < kRounds; ++round) {
    Observations sample;
    for (std::size_t i = 0; i < all.size(); ++i)
      sample.push_back(
          all[static_cast<std::size_t>(g.uniform() * static_cast<double>(all.size()))]);
    const auto again = fit_threshold(sample);
    ASSERT_TRUE(again);
    sum += again->threshold;
    squares += again->threshold * again->threshold;
  }
  const double variance = squares / kRounds - sum / kRounds * (sum / kRounds);
  EXPECT_NEAR(fit->variance / variance, 1, 0.2);
}

TEST(ThresholdFit, SeparatedObservationsMeetHalfwayWithATabulatedVariance) {
  const auto fit = fit_threshold(
      Observations{{0, false}, {0.7, false}, {0.8, false}, {0.9, true}, {0.95, true}, {1, true}});
  ASSERT_TRUE(fit && fit->separated);
  EXPECT_NEAR(fit->threshold, 0.85, 1e-12);
  EXPECT_NEAR(fit->variance, 0.035, 1e-12);
  // The nearest observation on either side is that sure.
  EXPECT_NEAR(1 / (1 + std::exp(fit->slope * 0.05)), 1e-8, 1e-9);
  EXPECT_NEAR(separated_variance(40), 0.00525, 1e-12);
  EXPECT_EQ(separated_variance(400), separated_variance(40));
  for (int n = 7; n <= 40; ++n) EXPECT_LT(separated_variance(n), separated_variance(n - 1));
  const auto tied = fit_threshold(Observations{{0, false}, {0.9, false}, {0.9, true}, {1, true}});
  ASSERT_TRUE(tied);
  EXPECT_TRUE(tied->separated);
  EXPECT_NEAR(tied->threshold, 0.9, 1e-12);
  EXPECT_TRUE(std::isfinite(tied->slope));
}

TEST(ThresholdFit, ThereIsNoneWhereSimilarityDoesNotHelp) {
  EXPECT_FALSE(fit_threshold(Observations{}));
  EXPECT_FALSE(fit_threshold(Observations{{0.8, true}, {0.9, true}}));
  EXPECT_FALSE(fit_threshold(Observations{{0.8, false}, {0.9, false}}));
  EXPECT_FALSE(fit_threshold(Observations{{0.8, true}, {0.9, false}}));
  EXPECT_FALSE(fit_threshold(Observations{{0.9, true}, {0.9, false}}));
  // A falling curve that overlaps.
  EXPECT_FALSE(fit_threshold(
      Observations{{0.5, true}, {0.6, true}, {0.7, false}, {0.8, true}, {0.9, false}, {1, false}}));
}

/// tau by its definition; the quantile by Newton on the distribution function.
double tau(const ThresholdFit& fit, double s, double delta) {
  double least = 1;
  for (int i = 0; i < 50; ++i) {
    const double epsilon = 1e-6 + (1 - 2e-6) * i / 49;
    double z = 0;
    for (int step = 0; step < 200; ++step) {
      const double density = std::exp(-z * z / 2) / std::sqrt(2 * std::acos(-1.0));
      const double off = std::erfc(-z / std::sqrt(2.0)) / 2 - (1 - epsilon);
      z -= std::clamp(off / density, -0.5, 0.5);
    }
    const double t = std::min(1.0, std::max(0.0, fit.threshold + z * std::sqrt(fit.variance)));
    const double alpha = (1 - epsilon) / (1 + std::exp(-fit.slope * (s - t)));
    least = std::min(least, 1 - delta / (1 - alpha));
  }
  return std::min(1.0, std::max(0.0, least));
}

TEST(ExploreProbability, IsItsDefinition) {
  for (const double t : {0.2, 0.6, 0.9, 0.99}) {
    for (const double slope : {0.5, 20.0, 400.0}) {
      for (const double variance : {0.0, 0.001, 0.035}) {
        const ThresholdFit fit{t, slope, variance, false};
        double before = 2;
        for (const double s : {0.0, 0.5, 0.9, 0.97, 1.0}) {
          for (const double delta : {0.005, 0.02, 0.3}) {
            EXPECT_NEAR(explore_probability(fit, s, delta), tau(fit, s, delta), 1e-7);
          }
          EXPECT_EQ(explore_probability(fit, s, 0), 1);
          EXPECT_EQ(explore_probability(fit, s, 1), 0);
          const auto now = explore_probability(fit, s, 0.02);
          EXPECT_LE(now, before) << "nearer is never explored more";
          EXPECT_GE(now, 0);
          EXPECT_LE(now, 1);
          before = now;
        }
      }
    }
  }
  // By hand: sure of the threshold and right all but surely, so that the least epsilon decides.
  EXPECT_EQ(explore_probability({0.4, 50, 0, true}, 0.95, 0.01), 0);
}

TEST(VectorQ, ExploresUntilSixObservations) {
  const auto vectorq = policy("vectorq(delta=0.02)");
  Observations seen;
  // (0, 0) and (1, 1) are two of the six.
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(vectorq->explore_probability(seen, 0.95), 1) << i;
    seen.push_back({0.9, true});
  }
  // By hand: t = 0.45, sd = 0.187, gamma = 40.9; at epsilon = 0.0204 t' = 0.833, L = 0.9919, and tau = 1 - 0.02 / 0.0284.
  EXPECT_NEAR(vectorq->explore_probability(seen, 0.95), 0.295, 0.001);
  EXPECT_EQ(policy("vectorq(delta=0)")->explore_probability(seen, 0.95), 1);
  EXPECT_THROW(static_cast<void>(policy("vectorq(delta=2)")), Error);
  EXPECT_THROW(static_cast<void>(policy("vectorq(capacity=0)")), Error);
}

TEST(VectorQ, KeepsToItsBoundOnACurve) {
  for (const double delta : {0.02, 0.05}) {
    const auto vectorq = policy("vectorq(delta=" + std::to_string(delta) + ")");
    Generator g(3);
    int prompts = 0, wrong = 0, hits = 0;
    for (int entry = 0; entry < 20; ++entry) {
      Observations seen;
      for (int i = 0; i < 150; ++i, ++prompts) {
        const auto one = drawn(1, 0.6, 0.8, 60, g).front();
        const double s = rounded_similarity(one.similarity);
        if (g.uniform() >= vectorq->explore_probability(seen, s)) {
          ++hits;
          wrong += !one.right;
        } else {
          seen.push_back({s, one.right});
        }
      }
    }
    const double error = static_cast<double>(wrong) / prompts;
    EXPECT_LE(error, delta + 2 * std::sqrt(delta * (1 - delta) / prompts)) << delta;
    EXPECT_GT(hits, prompts / 10) << "it does answer";
  }
}

std::vector<float> direction(double degrees) {
  const double radians = degrees * std::acos(-1.0) / 180;
  return {static_cast<float>(std::cos(radians)), static_cast<float>(std::sin(radians))};
}

/// Prompts around four directions, each with an answer of its own; every one is logged.
struct Talk {
  std::vector<ResponseCache::LoggedPrompt> log;
  std::vector<ResponseCache::Decision> decisions;
  int hits = 0;

  void go_on(ResponseCache& cache, int first, int last) {
    for (int i = first; i < last; ++i) {
      auto g = Generator(99).split(static_cast<std::uint64_t>(i));
      const auto about = static_cast<int>(g.uniform() * 4);
      const auto embedding = direction(60 * about + 12 * (g.uniform() - 0.5));
      const auto decision = cache.decide(embedding);
      ResponseCache::LoggedPrompt logged{embedding, std::nullopt};
      if (!decision.hit) {
        logged.fresh = "answer " + std::to_string(about);
        cache.learn(decision, embedding, *logged.fresh);
      }
      hits += decision.hit;
      log.push_back(logged);
      decisions.push_back(decision);
    }
  }
};

TEST(ResponseCache, ALogReplaysToTheSameDecisions) {
  const auto vectorq = policy("vectorq(delta=0.02)");
  ResponseCache cache(vectorq, 2, 5);
  Talk talk;
  talk.go_on(cache, 0, 400);
  EXPECT_GT(talk.hits, 40);
  EXPECT_LT(talk.hits, 400);
  ResponseCache again(vectorq, 2, 5);
  EXPECT_EQ(again.replay(talk.log), talk.decisions);
  EXPECT_EQ(again.size(), cache.size());
  ResponseCache other(policy("vectorq(delta=0)"), 2, 5);
  EXPECT_EQ(check::error_of([&] { static_cast<void>(other.replay(talk.log)); }), Errc::mismatch);
}

TEST(ResponseCache, DrawsForEveryPromptFromItsSeedAndNumber) {
  const auto vectorq = policy("vectorq(delta=0.02)");
  Talk one, two;
  ResponseCache first(vectorq, 2, 5), second(vectorq, 2, 6);
  one.go_on(first, 0, 400);
  two.go_on(second, 0, 400);
  EXPECT_NE(one.decisions, two.decisions) << "another seed";
}

TEST(ResponseCache, GoesOnFromRestoredEntries) {
  const auto vectorq = policy("vectorq(delta=0.02)");
  ResponseCache whole(vectorq, 2, 5), half(vectorq, 2, 5);
  Talk all, first, rest;
  all.go_on(whole, 0, 300);
  first.go_on(half, 0, 150);
  ResponseCache restored(vectorq, 2, 5, half.next_prompt());
  for (std::int64_t id = 1; id <= 100; ++id) {
    if (const auto* entry = half.find(id)) {
      EXPECT_TRUE(restored.restore(*entry));
    }
  }
  ASSERT_EQ(restored.size(), half.size());
  rest.go_on(restored, 150, 300);
  EXPECT_TRUE(std::equal(rest.decisions.begin(), rest.decisions.end(), all.decisions.begin() + 150,
                         all.decisions.end()));
}

TEST(ResponseCache, NeverAnswersAtDeltaZero) {
  for (const auto& [spec, answers] :
       {std::pair{"vectorq(delta=0)", false}, std::pair{"vectorq(delta=0.05)", true}}) {
    ResponseCache cache(policy(spec), 2, 1);
    int hits = 0;
    for (int i = 0; i < 300; ++i) {
      const auto decision = cache.decide(direction(0));
      hits += decision.hit;
      if (!decision.hit) cache.learn(decision, direction(0), "always the same");
    }
    EXPECT_EQ(hits > 0, answers) << spec;
    EXPECT_EQ(cache.size(), 1) << "what was right adds nothing";
  }
}

TEST(ResponseCache, TheEntryUnusedLongestGivesWay) {
  ResponseCache cache(policy("fixed(threshold=0.99, capacity=2)"), 2, 0);
  const auto ask = [&](double degrees) {
    const auto decision = cache.decide(direction(degrees));
    if (decision.hit) return ResponseCache::Learned{};
    return cache.learn(decision, direction(degrees), "at " + std::to_string(degrees));
  };
  EXPECT_EQ(ask(0).added, 1);
  EXPECT_EQ(ask(90).added, 2);
  EXPECT_FALSE(ask(0).added) << "a hit, which is a use";
  const auto third = ask(180);  // nearest to 90 degrees, which it so uses
  EXPECT_EQ(third.added, 3);
  EXPECT_EQ(third.evicted, std::vector<std::int64_t>{1});
  EXPECT_EQ(cache.size(), 2);
  EXPECT_EQ(cache.find(1), nullptr);
  EXPECT_FALSE(cache.decide(direction(0)).hit) << "gone from the index, too";
  EXPECT_TRUE(cache.decide(direction(180)).hit);
}

TEST(ResponseCache, TakesBackNoEntryThatCannotBe) {
  ResponseCache cache(policy("vectorq"), 2, 0);
  const ResponseCache::Entry good{7, direction(0), "yes", {{0.9, true}}, 3};
  const auto with = [&](auto change) {
    auto entry = good;
    change(entry);
    return cache.restore(entry);
  };
  const auto nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(with([](auto& e) { e.id = 0; }));
  EXPECT_FALSE(with([](auto& e) { e.id = std::numeric_limits<std::int64_t>::max(); }));
  EXPECT_FALSE(with([](auto& e) { e.embedding = {1, 0, 0}; }));
  EXPECT_FALSE(with([](auto& e) { e.embedding = {2, 0}; }));
  EXPECT_FALSE(with([&](auto& e) { e.embedding[0] = static_cast<float>(nan); }));
  EXPECT_FALSE(with([&](auto& e) { e.observations[0].similarity = nan; }));
  EXPECT_FALSE(with([](auto& e) { e.observations[0].similarity = 2; }));
  EXPECT_FALSE(with([](auto& e) { e.observations.resize(5000); }));
  EXPECT_EQ(cache.size(), 0);
  EXPECT_TRUE(cache.restore(good));
  EXPECT_FALSE(cache.restore(good)) << "its number is taken";
}

TEST(SameResponse, LooksAtWordsOnly) {
  EXPECT_TRUE(same_response("Ada Winter", " ada  winter."));
  EXPECT_TRUE(same_response("\"1904\"", "1904"));
  EXPECT_TRUE(same_response("", " . "));
  EXPECT_FALSE(same_response("Ada Winter", "Ada"));
  EXPECT_FALSE(same_response("1,904", "1904"));
  EXPECT_FALSE(same_response("not found in memory", "memory"));
}

// ---- in a memory file ----

const std::string kHandbook =
    "Travel must be approved by the head of finance, whose codeword is vorpalblade, two weeks "
    "ahead.\n";
const std::string kQuestion = "Who must approve travel?";

/// Two sources, and answers that are made up: no language model runs.
class CachedAnswersTest : public ::testing::Test {
 protected:
  CachedAnswersTest() {
    memory_ = open(MemoryFile::Access::create);
    memory_->read({document_from_text("handbook", kHandbook),
                   document_from_text("menu", "The cafeteria serves soup on Mondays.\n")},
                  {});
  }
  std::unique_ptr<Memory> open(MemoryFile::Access access) {
    MemoryOptions options;
    options.access = access;
    return Memory::open(folder_ / "m.mneme", models_, options);
  }
  CachedAnswers cache(Memory& memory, const std::string& spec = "fixed(threshold=0.9)",
                      const AskOptions& options = {}) {
    return {memory, models_->embedder(""), options, policy(spec), 0};
  }
  /// What asking would have given, read from the whole of these sources.
  static Answer fresh(Memory& memory, const std::string& text,
                      const std::vector<std::string>& sources = {"handbook"}) {
    Answer out;
    out.answer = text;
    out.found = out.quotation = true;
    out.relevance = 0.75;
    for (const auto& source : sources) {
      const auto document = memory.file().find_document(source)->document.id;
      for (const auto& span : memory.file().spans(document)) {
        if (span.kind != "passage") continue;
        CandidateReport candidate;
        candidate.candidate.id = span.id;
        candidate.source = source;
        candidate.placed = true;
        out.candidates.push_back(candidate);
        if (source != sources.front()) continue;
        Citation citation;
        citation.source = source;
        citation.start = span.begin;
        citation.end = span.end;
        citation.line = citation.excerpt_line = 1;
        citation.excerpt = memory.file().span_text(span.id);
        citation.span = span.id;
        out.citations.push_back(citation);
      }
    }
    return out;
  }
  /// Asks in vain and learns.
  void teach(const std::string& text, const std::vector<std::string>& sources = {"handbook"}) {
    auto cached = cache(*memory_);
    ASSERT_FALSE(cached.find(kQuestion));
    cached.learn(fresh(*memory_, text, sources));
    ASSERT_TRUE(cached.report().stored) << cached.report().obstacle;
  }
  std::optional<Answer> found() { return cache(*memory_).find(kQuestion); }

  const check::Folder folder_;
  std::shared_ptr<MemoryModels> models_ = std::make_shared<MemoryModels>("", "");
  std::unique_ptr<Memory> memory_;
};

TEST_F(CachedAnswersTest, AnAnswerIsGivenAgainWithItsCitations) {
  teach("the head of finance, vorpalblade");
  memory_.reset();
  memory_ = open(MemoryFile::Access::read_write);
  auto cached = cache(*memory_);
  const auto again = cached.find("Who must approve a travel?");
  ASSERT_TRUE(again);
  EXPECT_EQ(again->answer, "the head of finance, vorpalblade");
  EXPECT_TRUE(again->found && again->quotation && !again->cut);
  EXPECT_EQ(again->relevance, 0.75);
  ASSERT_EQ(again->citations.size(), 1u);
  const auto wanted = fresh(*memory_, "").citations.at(0);
  EXPECT_EQ(again->citations[0].source, "handbook");
  EXPECT_EQ(again->citations[0].end, wanted.end);
  EXPECT_EQ(again->citations[0].excerpt, wanted.excerpt);
  EXPECT_EQ(again->citations[0].span, wanted.span);
  EXPECT_TRUE(cached.report().hit && cached.report().stored && !cached.report().explored);
  EXPECT_EQ(cached.report().entry, 1);
  EXPECT_GT(cached.report().similarity, 0.9);
  EXPECT_FALSE(cache(*memory_).find("What does the cafeteria serve?"));
  EXPECT_EQ(memory_->file().counter("questions"), 1);
  check::expect_sound(memory_->file());
}

TEST_F(CachedAnswersTest, IsOfTheModelThatWouldAnswer) {
  teach("the head of finance");
  const auto span = fresh(*memory_, "").citations.at(0).span;
  int cached = 0;
  for (const auto& rep : memory_->file().reps(span)) {
    if (rep.key.kind != RepKind::text) continue;
    EXPECT_EQ(rep.key.model_digest, models_->language_model("")->digest);
    ++cached;
  }
  EXPECT_EQ(cached, 1);
  AskOptions options;
  options.top = 1;
  EXPECT_FALSE(cache(*memory_, "fixed(threshold=0.9)", options).find(kQuestion))
      << "other settings";
  EXPECT_TRUE(found()) << "which delete nothing";
}

TEST_F(CachedAnswersTest, ForgettingASourceTakesTheAnswersThatWereReadFromIt) {
  // Cited is the menu, but the handbook was read, too.
  teach("soup, by order of vorpalblade", {"menu", "handbook"});
  ASSERT_TRUE(found());
  auto cached = cache(*memory_);
  const auto report = memory_->file().forget("handbook");
  EXPECT_TRUE(report.cleaned);
  EXPECT_FALSE(cached.find(kQuestion)) << "also for whoever had loaded it";
  EXPECT_FALSE(found());
  memory_->file().close();
  memory_.reset();
  EXPECT_FALSE(check::found_in(folder_, "vorpalblade"));
}

TEST_F(CachedAnswersTest, AnotherTextOrANewSourceMakesAnswersStale) {
  teach("the head of finance");
  ASSERT_TRUE(found());
  memory_->read({document_from_text("handbook", "Travel must be approved by nobody.\n")}, {});
  EXPECT_FALSE(found()) << "changed";
  teach("nobody");
  ASSERT_TRUE(found());
  const auto span = fresh(*memory_, "").citations.at(0).span;
  const auto texts = [&] {
    const auto reps = memory_->file().reps(span);
    return std::count_if(reps.begin(), reps.end(),
                         [](const RepInfo& r) { return r.key.kind == RepKind::text; });
  };
  memory_->read({document_from_text("notice", "From now on Tom Hale approves travel.\n")}, {});
  EXPECT_FALSE(found()) << "new";
  EXPECT_EQ(texts(), 1);
  teach("nobody, still");
  EXPECT_EQ(texts(), 1) << "in the place of the stale one";
  ASSERT_TRUE(found());
  EXPECT_EQ(found()->answer, "nobody, still");
  memory_->read({document_from_text("notice", "From today on Tom Hale approves travel.\n")}, {});
  EXPECT_FALSE(found()) << "changed, though it was not cited";
  teach("Tom Hale", {"notice"});
  EXPECT_EQ(texts(), 0) << "the stale one is deleted";
  ASSERT_TRUE(found());
  EXPECT_EQ(found()->answer, "Tom Hale");
}

TEST_F(CachedAnswersTest, ExploringTeachesAndAWrongAnswerBecomesAnEntry) {
  auto cached = cache(*memory_, "vectorq(delta=0.05)");
  EXPECT_FALSE(cached.find(kQuestion));
  EXPECT_FALSE(cached.report().explored) << "there was nothing yet";
  cached.learn(fresh(*memory_, "the head of finance"));
  EXPECT_EQ(cached.report().entries, 1);
  EXPECT_FALSE(cached.find(kQuestion));
  EXPECT_TRUE(cached.report().explored);
  cached.learn(fresh(*memory_, "The head of finance."));
  EXPECT_EQ(cached.report().right, true);
  EXPECT_EQ(cached.report().entries, 1);
  EXPECT_FALSE(cached.find(kQuestion));
  cached.learn(fresh(*memory_, "somebody else"));
  EXPECT_EQ(cached.report().right, false);
  EXPECT_EQ(cached.report().entries, 2);
  // What was observed is in the file: another process learns on.
  memory_.reset();
  memory_ = open(MemoryFile::Access::read_write);
  int asked = 0;
  for (; asked < 40; ++asked) {
    auto next = cache(*memory_, "vectorq(delta=0.05)");
    if (next.find("Who must approve travelling by train?")) break;
    next.learn(fresh(*memory_, "the head of finance"));
  }
  EXPECT_GE(asked, 1);
  EXPECT_LT(asked, 40);
}

TEST_F(CachedAnswersTest, WhatNoSpanWasReadForIsNotKeptButTeaches) {
  const std::string moons = "Which moons of Jupiter did Galileo see?";
  auto cached = cache(*memory_);
  Answer nothing;
  nothing.answer = "not found in memory";
  ASSERT_FALSE(cached.find(moons));
  cached.learn(nothing);
  EXPECT_EQ(cached.report().entries, 0);
  ASSERT_FALSE(cached.find(kQuestion));
  cached.learn(fresh(*memory_, "the head of finance"));
  EXPECT_EQ(cached.report().entries, 1);
  ASSERT_FALSE(cached.find(moons));
  cached.learn(nothing);
  EXPECT_EQ(cached.report().entries, 1);
  EXPECT_EQ(cached.report().right, false);
  EXPECT_TRUE(cached.report().stored);
}

TEST_F(CachedAnswersTest, TheCapacityHoldsInTheFile) {
  const std::string spec = "fixed(threshold=1, capacity=2)";
  for (const auto* question : {"Who must approve travel?", "When is soup served?", "Why?"}) {
    auto cached = cache(*memory_, spec);
    ASSERT_FALSE(cached.find(question));
    cached.learn(fresh(*memory_, question));
    EXPECT_LE(cached.report().entries, 2);
  }
  int kept = 0;
  for (const auto& rep : memory_->file().reps(fresh(*memory_, "").citations.at(0).span))
    kept += rep.key.kind == RepKind::text;
  EXPECT_EQ(kept, 2);
}

TEST_F(CachedAnswersTest, AFileThatCannotBeWrittenAnswersAllTheSame) {
  teach("the head of finance");
  memory_.reset();
  memory_ = open(MemoryFile::Access::read_only);
  auto cached = cache(*memory_);
  EXPECT_TRUE(cached.find(kQuestion));
  EXPECT_FALSE(cached.report().stored);
  EXPECT_FALSE(cached.report().obstacle.empty());
  EXPECT_FALSE(cached.find("What does the cafeteria serve?"));
  cached.learn(fresh(*memory_, "soup", {"menu"}));
  EXPECT_FALSE(cached.report().stored);
  EXPECT_FALSE(cached.report().obstacle.empty());
}

TEST_F(CachedAnswersTest, ADamagedOrForgedEntryIsAMiss) {
  teach("the head of finance");
  auto& file = memory_->file();
  const auto span = fresh(*memory_, "").citations.at(0).span;
  std::optional<Rep> rep;
  for (const auto& info : file.reps(span)) {
    if (info.key.kind == RepKind::text) rep = file.get(info.key);
  }
  ASSERT_TRUE(rep);
  const auto whole = rep->blob;
  for (std::size_t cut = 0; cut < whole.size(); cut += 97) {
    rep->blob = whole.substr(0, cut);
    ASSERT_EQ(file.put({&*rep, 1}, Admission::for_question).stored, 1);
    EXPECT_FALSE(found()) << cut;
  }
  Generator g(1);
  for (int i = 0; i < 200; ++i) {
    rep->blob = whole;
    for (int j = 0; j < 3; ++j)
      rep->blob[static_cast<std::size_t>(g.uniform() * static_cast<double>(whole.size()))] =
          static_cast<char>(g.next());
    ASSERT_EQ(file.put({&*rep, 1}, Admission::for_question).stored, 1);
    static_cast<void>(cache(*memory_).find(kQuestion));  // a hit or a miss, never an error
  }
  rep->blob = whole;
  ASSERT_EQ(file.put({&*rep, 1}, Admission::for_question).stored, 1);
  EXPECT_TRUE(found());
}

}  // namespace
}  // namespace mneme
