#include "mneme/core/describe.h"

#include "mneme/core/error.h"

#include <gtest/gtest.h>
#include <random>

namespace mneme {
namespace {

struct Kitchen {
  struct Options {
    std::int64_t heads = 4;
    double ratio = 0.25;
    bool causal = true;
    std::string word = "mean";
    std::vector<std::int64_t> sizes = {1, 2};
    std::vector<double> weights;
    Chain inner = parse_chain("window");
  };
  static void describe(Describe& d, Options& o) {
    d("heads", o.heads, at_least(1), multiple_of(2), "query heads");
    d("ratio", o.ratio, above(0), "share kept");
    d("causal", o.causal, "only the past");
    d("word", o.word, one_of({"mean", "max", "first token"}), "pooling");
    d("sizes", o.sizes, within(-3, 9), "sizes");
    d("weights", o.weights, at_most(1), "weights");
    d("inner", o.inner, "what is inside");
  }
};

std::string canon(std::string_view spec) {
  return print(canonical<Kitchen>("kitchen", options_from<Kitchen>(parse_stage(spec))));
}

std::string refusal(std::string_view spec) {
  try {
    (void)options_from<Kitchen>(parse_stage(spec));
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Errc::usage);
    return e.what();
  }
  ADD_FAILURE() << "was accepted: " << spec;
  return {};
}

TEST(Describe, BindsByPositionAndByName) {
  const auto o = options_from<Kitchen>(parse_stage(
      "kitchen(8, 1, false, weights=[0.5, 1], inner={a | b(1)}, word=\"first token\")"));
  EXPECT_EQ(o.heads, 8);
  EXPECT_EQ(o.ratio, 1.0);
  EXPECT_FALSE(o.causal);
  EXPECT_EQ(o.word, "first token");
  EXPECT_EQ(o.sizes, (std::vector<std::int64_t>{1, 2})) << "not given: the default";
  EXPECT_EQ(o.weights, (std::vector<double>{0.5, 1}));
  EXPECT_EQ(print(o.inner), "a | b(1)");
  EXPECT_EQ(options_from<Kitchen>(parse_stage("kitchen(inner=a(2))")).inner, parse_chain("a(2)"))
      << "one stage needs no braces";
}

TEST(Describe, CanonicalPrintNamesWhatDiffersFromTheDefault) {
  EXPECT_EQ(canon("kitchen"), "kitchen");
  EXPECT_EQ(canon("kitchen(4, 0.250, true, mean, [1, 2], [], {window})"), "kitchen");
  EXPECT_EQ(canon("kitchen(word=\"max\", 6)"), "kitchen(heads=6, word=max)");
  EXPECT_EQ(canon("kitchen(word=\"first token\")"), "kitchen(word=\"first token\")");
  EXPECT_EQ(canon("kitchen(sizes=[])"), "kitchen(sizes=[])");
  EXPECT_EQ(canon("kitchen(inner={})"), "kitchen(inner={})");
  EXPECT_EQ(canon("kitchen(ratio=1e300)"), "kitchen(ratio=1e+300)");
  EXPECT_EQ(canon("kitchen(ratio=2.0)"), "kitchen(ratio=2)");
}

TEST(Describe, CanonicalFormIsAFixedPoint) {
  std::mt19937 random(5);
  const auto pick = [&](std::initializer_list<const char*> from) {
    return std::string(from.begin()[random() % from.size()]);
  };
  for (int i = 0; i < 500; ++i) {
    std::string spec = "kitchen(heads=" + pick({"2", "4", "1e3", "+8"}) +
                       ", ratio=" + pick({"0.25", "1e-9", "3", "1e18"}) +
                       ", causal=" + pick({"true", "false"}) +
                       ", word=" + pick({"mean", "\"max\"", "\"first token\""}) +
                       ", sizes=" + pick({"[]", "[1, 2]", "[-3, 9, 0]"}) +
                       ", inner=" + pick({"window", "{a | b}", "{}", "a(b=[c])"}) + ")";
    const auto once = canon(spec);
    ASSERT_EQ(canon(once), once) << spec;
  }
}

TEST(Describe, RefusalsSayWhatWasSeenAndWhatIsWanted) {
  EXPECT_EQ(refusal("kitchen(heads=0)"), "kitchen: option 'heads' must be at least 1, not 0");
  EXPECT_EQ(refusal("kitchen(heads=3)"), "kitchen: option 'heads' must be a multiple of 2, not 3");
  EXPECT_EQ(refusal("kitchen(heads=0.5)"), "kitchen: option 'heads' wants int, not 0.5");
  EXPECT_EQ(refusal("kitchen(heads=1e30)"), "kitchen: option 'heads' wants int, not 1e+30");
  EXPECT_EQ(refusal("kitchen(heads=\"4\")"), "kitchen: option 'heads' wants int, not \"4\"");
  EXPECT_EQ(refusal("kitchen(ratio=0)"), "kitchen: option 'ratio' must be above 0, not 0");
  EXPECT_EQ(refusal("kitchen(ratio=lots)"), "kitchen: option 'ratio' wants float, not lots");
  EXPECT_EQ(refusal("kitchen(causal=1)"), "kitchen: option 'causal' wants bool, not 1");
  EXPECT_EQ(refusal("kitchen(word=median)"),
            "kitchen: option 'word' must be one of mean, max, first token, not median");
  EXPECT_EQ(refusal("kitchen(word=mean(2))"), "kitchen: option 'word' wants string, not mean(2)");
  EXPECT_EQ(refusal("kitchen(sizes=[1, 10])"),
            "kitchen: option 'sizes' must be from -3 to 9, not [1, 10]");
  EXPECT_EQ(refusal("kitchen(sizes=[1, a])"),
            "kitchen: option 'sizes' wants list of int, not [1, a]");
  EXPECT_EQ(refusal("kitchen(weights=[0.5, 1.5])"),
            "kitchen: option 'weights' must be at most 1, not [0.5, 1.5]");
  EXPECT_EQ(refusal("kitchen(inner=3)"), "kitchen: option 'inner' wants spec, not 3");
}

TEST(Describe, UnknownAndDoubleOptionsAreRefused) {
  EXPECT_EQ(refusal("kitchen(hedas=4)"),
            "kitchen: unknown option 'hedas', did you mean 'heads'? (options: heads, ratio, "
            "causal, word, sizes, weights, inner)");
  EXPECT_EQ(refusal("kitchen(4, heads=4)"), "kitchen: option 'heads' is given twice");
  EXPECT_EQ(refusal("kitchen(heads=4, 4)"), "kitchen: option 'heads' is given twice");
  EXPECT_EQ(refusal("kitchen(2, 1, true, mean, [1], [1], a, b)"),
            "kitchen: 8 positional arguments, at most 7 are taken");
  try {
    Describe().bind(parse_stage("plain(x=1)"));
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "plain: unknown option 'x': it takes none");
  }
}

TEST(Describe, DocumentsEveryOption) {
  Kitchen::Options o;
  Describe d;
  Kitchen::describe(d, o);
  const auto docs = d.document();
  ASSERT_EQ(docs.size(), 7u);
  EXPECT_EQ(docs[0].name, "heads");
  EXPECT_EQ(docs[0].type, "int");
  EXPECT_EQ(docs[0].default_value, "4");
  EXPECT_EQ(docs[0].condition, "at least 1; a multiple of 2");
  EXPECT_EQ(docs[0].help, "query heads");
  EXPECT_EQ(docs[2].default_value, "true");
  EXPECT_EQ(docs[4].type, "list of int");
  EXPECT_EQ(docs[4].default_value, "[1, 2]");
  EXPECT_EQ(docs[6].type, "spec");
  EXPECT_EQ(docs[6].default_value, "{window}");
}

}  // namespace
}  // namespace mneme
