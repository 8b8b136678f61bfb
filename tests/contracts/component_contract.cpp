// What every component of the registry must say of itself, and that mechanisms of the tests' own folder are among them.
#include "mneme/core/registry.h"
#include "mneme/kv/plan.h"
#include "mneme/mixers/mixer.h"

#include "../tensor_check.h"
#include <gtest/gtest.h>
#include <map>
#include <regex>

namespace mneme {
namespace {

/// A kind and a name in it.
using Named = std::pair<std::string, std::string>;

std::vector<Named> everything() {
  std::vector<Named> out;
  for (const auto* component : registry().components())
    out.emplace_back(component->kind, component->name);
  return out;
}

class ComponentContract : public ::testing::TestWithParam<Named> {
 protected:
  const Component& component_ = registry().find(GetParam().first, GetParam().second);
};

bool one_line(const std::string& text) {
  return !text.empty() && text.size() <= 120 && text.find('\n') == std::string::npos;
}

TEST_P(ComponentContract, SaysWhatItIs) {
  EXPECT_TRUE(std::regex_match(component_.name, std::regex("[a-z][a-z0-9_]*"))) << component_.name;
  EXPECT_TRUE(one_line(component_.help)) << component_.help;
  EXPECT_NE(component_.help.back(), '.') << "a phrase, not a sentence";
  EXPECT_TRUE(one_line(std::string(registry().kind_help(component_.kind))));
  EXPECT_TRUE(
      component_.card.empty() ||
      std::regex_match(component_.card, std::regex("[a-z0-9]+(-[a-z0-9]+)*-(19|20)[0-9]{2}")))
      << component_.card;
}

TEST_P(ComponentContract, SaysWhatItsOptionsAre) {
  for (std::size_t i = 0; i < component_.options.size(); ++i) {
    const auto& option = component_.options[i];
    EXPECT_TRUE(std::regex_match(option.name, std::regex("[a-z][a-z0-9_]*"))) << option.name;
    EXPECT_TRUE(one_line(option.help)) << option.name << ": " << option.help;
    EXPECT_FALSE(option.type.empty()) << option.name;
    for (std::size_t j = 0; j < i; ++j)
      EXPECT_NE(component_.options[j].name, option.name) << "declared twice";
  }
}

TEST_P(ComponentContract, ItsDefaultsAreWhatItDocuments) {
  const auto bare = component_.canonicalize(Stage{component_.name, {}});
  EXPECT_EQ(print(bare), component_.name) << "defaults are not printed";
  for (const auto& option : component_.options) {
    const auto spec = component_.name + "(" + option.name + "=" +
                      (option.default_value.empty() ? "\"\"" : option.default_value) + ")";
    EXPECT_EQ(print(component_.canonicalize(parse_stage(spec))), component_.name) << spec;
  }
}

TEST_P(ComponentContract, WhatItPrintsItParses) {
  std::int64_t taken = 0;
  for (const auto& option : component_.options) {
    std::vector<std::string> values{"0",      "1",        "2",    "3",   "4",      "8",
                                    "64",     "0.5",      "1e-3", "-1",  "true",   "false",
                                    "halves", "adjacent", "relu", "f16", "[1, 2]", "\"text\""};
    values.push_back(option.default_value.empty() ? "\"\"" : option.default_value);
    for (const auto& value : values) {
      Stage canonical;
      try {
        canonical = component_.canonicalize(
            parse_stage(component_.name + "(" + option.name + "=" + value + ")"));
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), Errc::usage);
        EXPECT_NE(std::string(error.what()).find(option.name), std::string::npos)
            << "a refusal names the option: " << error.what();
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
        continue;
      }
      ++taken;
      const auto text = print(canonical);
      EXPECT_EQ(parse_stage(text), canonical) << text;
      EXPECT_EQ(print(component_.canonicalize(parse_stage(text))), text);
    }
  }
  EXPECT_TRUE(taken > 0 || component_.options.empty()) << "no option takes any value";
}

TEST_P(ComponentContract, AnUnknownOptionIsRefusedWithTheNearest) {
  for (const auto& option : component_.options) {
    if (option.name.size() < 4) continue;
    auto typo = option.name;
    std::swap(typo[1], typo[2]);
    if (typo == option.name) typo += "s";
    check::expect_error(Errc::usage, "did you mean '", [&] {
      (void)component_.canonicalize(Stage{component_.name, {{typo, {std::int64_t{1}}}}});
    });
    check::expect_error(Errc::usage, "'" + typo + "'", [&] {
      (void)component_.canonicalize(Stage{component_.name, {{typo, {std::int64_t{1}}}}});
    });
  }
  check::expect_error(Errc::usage, "no_such_option", [&] {
    (void)component_.canonicalize(Stage{component_.name, {{"no_such_option", {std::int64_t{1}}}}});
  });
  Stage many{component_.name, {}};
  for (std::size_t i = 0; i <= component_.options.size(); ++i)
    many.arguments.push_back({"", {std::int64_t{1}}});
  EXPECT_THROW((void)component_.canonicalize(many), Error) << "more values than options";
}

TEST_P(ComponentContract, AMistypedNameIsAnsweredWithTheNearest) {
  if (component_.name.size() < 4) return;  // too short to guess
  check::expect_error(Errc::usage, "did you mean '",
                      [&] { (void)registry().find(component_.kind, component_.name + "x"); });
}

INSTANTIATE_TEST_SUITE_P(EveryComponent, ComponentContract, ::testing::ValuesIn(everything()),
                         [](const auto& info) {
                           return info.param.first + "__" + check::test_name(info.param.second);
                         });

TEST(TestMechanisms, AreFoundWithoutAnyOtherEdit) {
  EXPECT_EQ(registry().find("mixer", "decaying_sum").help, "a fading average, for the tests");
  EXPECT_EQ(registry().find("kv_stage", "every_other").options.size(), 2u);
  Params params;
  const auto mixer = registry().make<Mixer>("decaying_sum(width=3)", Shape{8, 0}, params);
  EXPECT_EQ(mixer->state_bytes(1000), 12);
  EXPECT_EQ(
      print(KvPlan(parse_chain("every_other(recent=8) | window(size=100) | quantize")).chain()),
      "every_other(recent=8) | window(size=100) | quantize");
  check::expect_error(Errc::usage, "did you mean 'decaying_sum'",
                      [&] { (void)registry().find("mixer", "decayin_sum"); });
  check::expect_error(Errc::usage, "unknown option 'widht', did you mean 'width'", [&] {
    (void)registry().make<Mixer>("decaying_sum(widht=3)", Shape{8, 0}, params);
  });
}

/// What a plan cannot serve is refused when it is written, whatever the reason.
TEST(TestMechanisms, StagesThatNoStoreCanRunAreRefused) {
  for (const std::string role : {"score", "place", "retrieve"}) {
    check::expect_error(Errc::usage,
                        "kv: 'demanding' is a " + role + " stage, which no store can run",
                        [&] { KvPlan(parse_chain("window | demanding(role=" + role + ")")); });
  }
  check::expect_error(Errc::usage, "'keep' needs scores",
                      [] { KvPlan(parse_chain("window | keep(ratio=0.5)")); });
  check::expect_error(Errc::usage, "comes after the codec",
                      [] { KvPlan(parse_chain("quantize | window")); });
  check::expect_error(Errc::usage, "did you mean 'window'",
                      [] { KvPlan(parse_chain("windw(size=3)")); });
}

}  // namespace
}  // namespace mneme
