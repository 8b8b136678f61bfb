// The program in process, over the tests' own registry, and the small parts that it writes and reads with.
#include "mneme/core/error.h"
#include "mneme/core/registry.h"

#include "cli/program/config.h"
#include "cli/program/flags.h"
#include "cli/program/output.h"
#include "cli/program/run.h"
#include "cli/program/sampling.h"
#include <CLI/CLI.hpp>
#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace mneme::cli {
namespace {

struct Said {
  int status;
  std::string out, err;
};

Said run_with(std::vector<std::string> words) {
  words.insert(words.begin(), "mneme");
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const auto status = run(static_cast<int>(argv.size()), argv.data());
  auto out = testing::internal::GetCapturedStdout();
  return {status, std::move(out), testing::internal::GetCapturedStderr()};
}

TEST(Program, ListsWhateverIsInTheRegistryThatIsLinkedIn) {
  for (const auto* component : registry().components()) {
    const auto said = run_with({"components", component->name, "--json"});
    ASSERT_EQ(said.status, 0) << said.err;
    const auto listed = Json::parse(said.out);
    ASSERT_FALSE(listed.empty());
    bool found = false;
    for (const auto& entry : listed) {
      EXPECT_EQ(entry["name"], component->name);
      if (entry["kind"] != component->kind) continue;
      found = true;
      ASSERT_EQ(entry["options"].size(), component->options.size());
      for (std::size_t i = 0; i < component->options.size(); ++i) {
        EXPECT_EQ(entry["options"][i]["name"], component->options[i].name);
        EXPECT_EQ(entry["options"][i]["default"], component->options[i].default_value);
        EXPECT_EQ(entry["options"][i]["condition"], component->options[i].condition);
      }
    }
    EXPECT_TRUE(found) << component->kind << " " << component->name;
  }
}

TEST(Program, GlobalFlagsMayStandBeforeTheVerb) {
  const auto before = run_with({"--seed", "4", "--threads=1", "show", "--print-config"});
  const auto after = run_with({"show", "--print-config", "--threads", "1", "--seed=4"});
  EXPECT_EQ(before.status, 0) << before.err;
  EXPECT_EQ(before.out, after.out);
  EXPECT_NE(before.out.find("seed = 4"), std::string::npos);
}

TEST(Program, WhatStandsBehindTwoDashesIsNoFlag) {
  const auto said = run_with({"show", "--", "--json"});
  EXPECT_EQ(said.status, 1);
  EXPECT_EQ(said.err.rfind("mneme: --json: there is no such memory file", 0), 0u) << said.err;
}

TEST(Program, AFileNameCannotSteerTheTerminal) {
  const auto said = run_with({"show", "a\x1b[2Jb\nc"});
  EXPECT_EQ(said.status, 1);
  EXPECT_EQ(said.err.find('\x1b'), std::string::npos);
  EXPECT_EQ(said.err.find('\n'), said.err.size() - 1) << "more than one line";
}

TEST(ParseBytes, TakesUnitsOfBothKinds) {
  EXPECT_EQ(parse_bytes("123"), 123);
  EXPECT_EQ(parse_bytes("64MiB"), std::int64_t{64} << 20);
  EXPECT_EQ(parse_bytes("1 gib"), std::int64_t{1} << 30);
  EXPECT_EQ(parse_bytes("1.5GiB"), std::int64_t{3} << 29);
  EXPECT_EQ(parse_bytes("2G"), std::int64_t{2} << 30);
  EXPECT_EQ(parse_bytes("500MB"), 500000000);
  EXPECT_EQ(parse_bytes("7kB"), 7000);
  EXPECT_EQ(parse_bytes("9B"), 9);
}

TEST(ParseBytes, RefusesEverythingElse) {
  for (const auto* text :
       {"", "MiB", "-1", "12XB", "1 Mib extra", "nan", "inf", "99999999TiB", "1e5", "0x10"}) {
    EXPECT_THROW(parse_bytes(text), Error) << text;
  }
}

TEST(OneLine, LeavesOutWhatSteers) {
  EXPECT_EQ(one_line("  a\tb\n\nc  "), "a b c");
  EXPECT_EQ(one_line("\x1b[31mred\x07"), "[31mred");
  EXPECT_EQ(one_line("caf\xc3\xa9 \xf0\x9f\x99\x82"), "caf\xc3\xa9 \xf0\x9f\x99\x82");
  EXPECT_EQ(one_line("safe\xe2\x80\xaegnp.exe"), "safegnp.exe");  // U+202E turns what follows
  EXPECT_EQ(one_line("\xff"), "\xef\xbf\xbd");
  EXPECT_EQ(one_line("\xc2\x9b"), "");  // a control character of the C1 set
  EXPECT_EQ(printable("a\n\tb\r"), "a\n\tb");
}

TEST(Figures, AreWrittenForPeople) {
  EXPECT_EQ(with_separators(0), "0");
  EXPECT_EQ(with_separators(999), "999");
  EXPECT_EQ(with_separators(1000), "1,000");
  EXPECT_EQ(with_separators(-1234567), "-1,234,567");
  EXPECT_EQ(as_size(1023), "1023 B");
  EXPECT_EQ(as_size(1024), "1 KiB");
  EXPECT_EQ(as_size(std::int64_t{3} << 29), "1.5 GiB");
  EXPECT_EQ(as_duration(0.25), "0.25 s");
  EXPECT_EQ(as_duration(200), "3 min 20 s");
  EXPECT_EQ(as_duration(7260), "2 h 1 min");
  EXPECT_EQ(counted(1, "span"), "1 span");
  EXPECT_EQ(counted(1200, "span"), "1,200 spans");
  EXPECT_EQ(counted(2, "text was", "texts were"), "2 texts were");
}

TEST(Environment, NamesAreUpperCase) {
  EXPECT_EQ(environment_name("max-tokens"), "MNEME_MAX_TOKENS");
}

TEST(Sampling, FlagsBecomeAChainAndASpecStandsInTheirPlace) {
  Sampling sampling;
  EXPECT_TRUE(sampling.chain({}).empty());
  sampling.settings.temperature = 0.5;
  sampling.settings.top_k = 40;
  const auto chain = sampling.chain({});
  ASSERT_EQ(chain.size(), 2u);
  EXPECT_EQ(chain[0].name, "top_k");
  EXPECT_EQ(chain[1].name, "temperature");
  sampling.spec = "top_k(40)";
  ASSERT_EQ(sampling.chain({}).size(), 1u);
  EXPECT_EQ(sampling.chain({}).front().name, "top_k");
}

// What was given decides, not its value: a default that somebody typed is a wish too.
TEST(Sampling, ASpecIsRefusedBesideFlagsThatWereGiven) {
  const std::string typed(kCommandLine);
  Sampling sampling;
  sampling.spec = "top_k(40)";
  for (const auto* name : {"temp", "top-k", "top-p", "min-p", "repeat-penalty", "repeat-window"}) {
    EXPECT_THROW(sampling.chain({{"sampler", typed}, {name, typed}}), Error) << name;
    EXPECT_THROW(sampling.chain({{"sampler", "MNEME_SAMPLER"}, {name, typed}}), Error) << name;
    EXPECT_THROW(sampling.chain({{"sampler", "c.toml"}, {name, "c.toml"}}), Error) << name;
    EXPECT_EQ(sampling.chain({{"sampler", typed}, {name, "c.toml"}}).size(), 1u) << name;
  }
  EXPECT_EQ(sampling.chain({{"sampler", typed}, {"max-tokens", typed}}).size(), 1u);
}

}  // namespace
}  // namespace mneme::cli
