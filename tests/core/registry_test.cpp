#include "mneme/core/registry.h"

#include "mneme/core/nearest.h"

#include <gtest/gtest.h>

namespace mneme {
namespace {

class Animal {
 public:
  static constexpr std::string_view kKind = "animal", kKindHelp = "what lives here";
  using Make = std::unique_ptr<Animal>(const std::string& name, int& born);
  virtual ~Animal() = default;
  [[nodiscard]] virtual std::string says() const = 0;
};

class Dog final : public Animal {
 public:
  struct Options {
    std::int64_t barks = 1;
  };
  static void describe(Describe& d, Options& o) { d("barks", o.barks, at_least(0), "how often"); }
  Dog(const Options& o, const std::string& name, int& born) : o_(o), name_(name) { ++born; }
  [[nodiscard]] std::string says() const override {
    return name_ + " barks " + std::to_string(o_.barks);
  }

 private:
  Options o_;
  std::string name_;
};

class Cat final : public Animal {
 public:
  Cat(const std::string& name, int& born) : name_(name) { ++born; }
  [[nodiscard]] std::string says() const override { return name_ + " looks"; }

 private:
  std::string name_;
};

/// Another kind, whose factory takes nothing.
class Rock {
 public:
  static constexpr std::string_view kKind = "rock", kKindHelp = "what only lies here";
  using Make = std::unique_ptr<Rock>();
  virtual ~Rock() = default;
};
class Granite final : public Rock {};

class RegistryTest : public ::testing::Test {
 protected:
  RegistryTest() {
    r_.add<Animal, Dog>("dog", "a dog", "dogs-2001");
    r_.add<Animal, Cat>("cat", "a cat");
    r_.add<Rock, Granite>("granite", "hard");
  }
  template <class Body>
  static std::string refusal(Body body) {
    try {
      body();
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Errc::usage);
      return e.what();
    }
    ADD_FAILURE() << "was accepted";
    return {};
  }
  Registry r_;
  int born_ = 0;
};

TEST_F(RegistryTest, MakesWhatASpecNames) {
  const std::string name = "Rex";
  EXPECT_EQ(r_.make<Animal>("dog(barks=3)", name, born_)->says(), "Rex barks 3");
  EXPECT_EQ(r_.make<Animal>(Stage{"cat", {}}, name, born_)->says(), "Rex looks");
  EXPECT_EQ(born_, 2) << "references reach the constructor";
  EXPECT_NE(r_.make<Rock>("granite"), nullptr);
}

TEST_F(RegistryTest, NamesTheNearest) {
  const std::string name = "Rex";
  EXPECT_EQ(refusal([&] { (void)r_.make<Animal>("dgo", name, born_); }),
            "no animal is called 'dgo', did you mean 'dog'? (see `mneme components animal`)");
  EXPECT_EQ(refusal([&] { (void)r_.find("animal", "granite"); }),
            "no animal is called 'granite' (see `mneme components animal`)");
  EXPECT_EQ(refusal([&] { (void)r_.find("animla", "dog"); }),
            "no components of kind 'animla', did you mean 'animal'?");
  EXPECT_EQ(refusal([&] { (void)r_.make<Animal>("dog(brks=1)", name, born_); }),
            "dog: unknown option 'brks', did you mean 'barks'? (options: barks)");
  EXPECT_EQ(refusal([&] { (void)r_.make<Animal>("cat(1)", name, born_); }),
            "cat: 1 positional arguments, at most 0 are taken");
  EXPECT_EQ(born_, 0);
}

TEST_F(RegistryTest, KnowsWhatIsEnrolled) {
  EXPECT_EQ(r_.kinds(), (std::vector<std::string>{"animal", "rock"}));
  EXPECT_EQ(r_.kind_help("rock"), "what only lies here");
  EXPECT_EQ(r_.kind_help("plant"), "");
  EXPECT_EQ(r_.names("animal"), (std::vector<std::string>{"cat", "dog"}));
  EXPECT_EQ(r_.components().size(), 3u);
  EXPECT_TRUE(r_.has("animal", "dog"));
  EXPECT_FALSE(r_.has("rock", "dog"));
  EXPECT_FALSE(r_.has("plant", "dog"));
  const auto& dog = r_.find("animal", "dog");
  EXPECT_EQ(dog.card, "dogs-2001");
  ASSERT_EQ(dog.options.size(), 1u);
  EXPECT_EQ(dog.options[0].condition, "at least 0");
  EXPECT_EQ(print(dog.canonicalize(parse_stage("dog(2.0)"))), "dog(barks=2)");
  EXPECT_EQ(print(r_.find("rock", "granite").canonicalize(parse_stage("granite()"))), "granite");
  EXPECT_THROW((void)r_.find("rock", "granite").canonicalize(parse_stage("granite(x=1)")), Error);
}

TEST_F(RegistryTest, OneNameStandsForOneMechanism) {
  EXPECT_DEATH((r_.add<Animal, Cat>("dog", "a cat in disguise")), "internal error");
}

/// Every enrolled component prints its defaults canonically as its bare name, and every name is one that a spec can say.
TEST(EnrolledComponents, CanBeNamedInSpecs) {
  ASSERT_TRUE(registry().has("state_store", "tape_store"))
      << "a mechanism in the tests' own folder is found";
  for (const auto* component : registry().components()) {
    EXPECT_EQ(print(component->canonicalize(parse_stage(component->name))), component->name);
    EXPECT_FALSE(component->help.empty()) << component->name;
    for (const auto& option : component->options)
      EXPECT_FALSE(option.help.empty()) << component->name << ": " << option.name;
  }
}

TEST(Nearest, FindsTheSmallestEditDistance) {
  EXPECT_EQ(nearest("softmx", {"linear", "softmax", "softplus"}), "softmax");
  EXPECT_EQ(nearest("xyzzy", {"linear", "softmax"}), "");
  EXPECT_EQ(nearest("abdc", {"abxx", "abcd"}), "abcd") << "two letters swapped are one mistake";
  EXPECT_EQ(nearest("", {"a", "abc"}), "a");
  EXPECT_EQ(nearest("anything", {}), "");
  EXPECT_EQ(did_you_mean("sofmax", {"softmax"}), ", did you mean 'softmax'?");
  EXPECT_EQ(did_you_mean("q", {"softmax"}), "");
}

TEST(GlobMatch, StarsAndBars) {
  EXPECT_TRUE(glob_match("*", ""));
  EXPECT_TRUE(glob_match("layers.*.attn.q", "layers.10.attn.q"));
  EXPECT_FALSE(glob_match("layers.*.attn.q", "layers.10.attn.k"));
  EXPECT_TRUE(glob_match("a|b*|c", "bcd"));
  EXPECT_FALSE(glob_match("a|b|c", "abc"));
  EXPECT_TRUE(glob_match("*ab*ab", "abxabab"));
  EXPECT_FALSE(glob_match("*ab*ab", "xab"));
  EXPECT_FALSE(glob_match("", "a"));
  EXPECT_TRUE(glob_match("a|", ""));
  EXPECT_FALSE(glob_match(std::string(50, '*') + "b", std::string(5000, 'a')))
      << "no exponential search";
}

}  // namespace
}  // namespace mneme
