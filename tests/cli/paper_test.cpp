// Cards: what they say, what is refused, how a claim is run and judged, and the cards of the checkout.
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/models/locate.h"
#include "mneme/weights/digests.h"

#include "../folder_test.h"
#include "../tensor_check.h"
#include "cli/program/interrupt.h"
#include "cli/program/paper_card.h"
#include "cli/program/paper_run.h"
#include "cli/program/run.h"
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fmt/format.h>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <map>
#include <thread>
#include <vector>

namespace mneme::cli {
namespace {

namespace fs = std::filesystem;
using check::expect_error;

constexpr const char* kSlug = "made-up-2024";
constexpr const char* kCard = R"toml(# A card for the tests.
slug = "made-up-2024"
row = 7
title = "Made Up"
authors = "Nobody et al."
year = 2024
source = "arXiv:0000.00000"
family = "kv-memory"
components = ["kv_stage/window", "mixer/decaying_sum"]  # of two kinds
reports = "It is half as bad."
departs = ["it is not measured", "nor is it made"]

[claim]
text = "The gap is at most seven tenths of the other's"
command = ["bench", "gaps", "--kv", "window(size=8); quantize"]
smoke = ["bench", "gaps", "--tokens", "8"]
criteria = [
  { name = "gap", metric = "/rows/0/kl", at_most = 0.5, times = "/rows/1/kl", plus = 0.25 },
  { name = "agreement", metric = "/rows/0/agreement", at_least = 0.75 },
]
)toml";
// What the digests are of: changing these forms makes every recorded result stale.
constexpr const char* kClaimContent =
    R"({"text":"The gap is at most seven tenths of the other's","criteria":[)"
    R"({"name":"gap","metric":"/rows/0/kl","at_most":0.5,"times":"/rows/1/kl","plus":0.25},)"
    R"({"name":"agreement","metric":"/rows/0/agreement","at_least":0.75,"times":null,"plus":0.0}]})";
constexpr const char* kCommandContent =
    R"({"command":["bench","gaps","--kv","window(size=8); quantize"],"files":[]})";

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  const auto at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  if (at != std::string::npos) text.replace(at, from.size(), to);
  return text;
}

std::string content(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::size_t entries(const fs::path& folder) {
  return static_cast<std::size_t>(
      std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

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

class PaperCard : public check::FolderTest {
 protected:
  fs::path put(std::string_view text) const {
    return write(std::string("papers/") + kSlug + ".toml", text);
  }
  Card card(std::string_view text = kCard) const { return read_card(put(text)); }
  /// One criterion of two is met.
  static Measured partly() {
    Measured out;
    out.verdict = Verdict::partly_shown;
    out.criteria = {{"gap", 0.5, 0.5625, true}, {"agreement", 0.7, 0.75, false}};
    out.claim_digest = sha256_hex(kClaimContent);
    out.command_digest = sha256_hex(kCommandContent);
    out.seed = 3;
    out.commit = "0123456789abcdef0123456789abcdef01234567";
    out.dirty = false;
    out.machine = "A \"fast\" one, avx2, 2 threads";
    out.torch = "2.13.0";
    out.seconds = 12.25;
    out.date = "2026-03-04";
    return out;
  }
  /// The text of a card with that result.
  std::string with_result(std::string_view text = kCard) const {
    const auto path = put(text);
    write_result(path, partly());
    return content(path);
  }
  fs::path program(const std::string& script) const {
    const auto path = write("bin/program", "#!/bin/sh\n" + script);
    fs::permissions(path, fs::perms::owner_all);
    return path;
  }
};

TEST_F(PaperCard, HoldsWhatTheFileSays) {
  const auto read = card();
  EXPECT_EQ(read.slug, kSlug);
  EXPECT_EQ(read.row, 7);
  EXPECT_EQ(read.title, "Made Up");
  EXPECT_EQ(read.authors, "Nobody et al.");
  EXPECT_EQ(read.year, 2024);
  EXPECT_EQ(read.source, "arXiv:0000.00000");
  EXPECT_EQ(read.family, "kv-memory");
  EXPECT_EQ(read.components, (std::vector<std::string>{"kv_stage/window", "mixer/decaying_sum"}));
  EXPECT_EQ(read.reports, "It is half as bad.");
  EXPECT_EQ(read.departs.size(), 2u);
  EXPECT_EQ(read.claim.command.at(3), "window(size=8); quantize");
  EXPECT_EQ(read.claim.smoke.at(3), "8");
  ASSERT_EQ(read.claim.criteria.size(), 2u);
  const auto& gap = read.claim.criteria[0];
  EXPECT_TRUE(gap.at_most);
  EXPECT_EQ(gap.metric, "/rows/0/kl");
  EXPECT_EQ(gap.number, 0.5);
  EXPECT_EQ(gap.times, "/rows/1/kl");
  EXPECT_EQ(gap.plus, 0.25);
  EXPECT_FALSE(read.claim.criteria[1].at_most);
  EXPECT_FALSE(read.claim.criteria[1].times.has_value());
  EXPECT_FALSE(read.result.has_value());
  EXPECT_EQ(standing(read), "pending");
}

TEST_F(PaperCard, RefusesEverythingElseAndSaysWhereAndWhatToDo) {
  const struct {
    const char *from, *to, *why;
  } wrong[] = {
      {"slug = ", "slug = [", "made-up-2024.toml:"},
      {"slug = \"made-up-2024\"\n", "", "made-up-2024.toml: 'slug' is missing: add"},
      {"made-up-2024", "made-on-2024", ":2: 'slug' is 'made-on-2024', but the file is"},
      {"made-up-2024", "Made Up", ":2: 'slug' is 'Made Up': it must be lower-case words"},
      {"title =", "titel =", "'title' is missing"},
      {"row = 7", "row = 7\nroh = 8", ":4: unknown key 'roh', did you mean 'row'?"},
      {"row = 7", "row = -1", ":3: 'row' must be a whole number of at least 0"},
      {"row = 7", "row = \"7\"", ":3: 'row' must be a whole number"},
      {"title = \"Made Up\"", "title = 3", ":4: 'title' must be text"},
      {"title = \"Made Up\"", "title = \" \"", ":4: 'title' is empty"},
      {"year = 2024", "year = 2023", ":6: 'year' is 2023, but the slug is 'made-up-2024'"},
      {"kv_stage/window", "kv_stage/windw", ":9: 'components': no kv_stage is called 'windw', did"},
      {"kv_stage/window", "kv_stag/window", "no components of kind 'kv_stag', did you mean"},
      {"kv_stage/window", "window", "'window' must be a kind and a name"},
      {"[\"kv_stage/window\", \"mixer/decaying_sum\"]", "[]", "'components' is empty"},
      {"departs = [", "departs = [1, ", "'departs' must be text"},
      {"[claim]", "[clam]", "'claim' is missing: add a table, [claim]"},
      {"[claim]", "[claim]\nreports = \"x\"", ":14: unknown key 'reports' in [claim]"},
      {"text = \"The", "test = \"The", "'text' is missing in [claim]"},
      {"command =", "comand =", "'command' is missing in [claim]: add a list of texts"},
      {"[\"bench\", \"gaps\", \"--kv\"", "[\"--kv\"", ":15: 'command' must begin with a verb"},
      {"[\"bench\", \"gaps\", \"--kv\"", "[\"paper\", \"run\"",
       ":15: 'command' runs `mneme paper`"},
      {"\"--tokens\", \"8\"", "\"--json\"", ":16: 'smoke' holds --json, which `mneme paper run`"},
      {"\"--tokens\", \"8\"", "\"--seed=4\"", ":16: 'smoke' holds --seed,"},
      {"metric = \"/rows/0/kl\", ", "", "'metric' is missing in [criteria]"},
      {"\"/rows/0/kl\"", "\"rows/0/kl\"", ":18: 'metric' is 'rows/0/kl', which is no JSON pointer"},
      {"\"/rows/1/kl\"", "\"/rows~2\"", ":18: 'times' is '/rows~2', which is no JSON pointer"},
      {"at_most = 0.5, ", "", "criterion 'gap' must have either at_most or at_least"},
      {"at_least = 0.75", "at_least = 0.75, at_most = 1", "must have either at_most or at_least"},
      {"at_most = 0.5", "at_most = nan", ":18: 'at_most' must be a finite number"},
      {"at_most = 0.5", "at_most = \"0.5\"", ":18: 'at_most' must be a finite number"},
      {"plus = 0.25", "pluss = 0.25",
       ":18: unknown key 'pluss' in [criteria], did you mean 'plus'?"},
      {"name = \"agreement\"", "name = \"gap\"", ":19: two criteria are called 'gap'"},
      {"[claim]", "changed = 3\n[claim]", "'changed' must be tables [[changed]]"},
      {"[claim]", "[[changed]]\ndate = \"3 May\"\nold = \"x\"\nreason = \"y\"\n[claim]",
       ":14: 'date' must be a date, as in 2026-01-31"},
      {"[claim]", "[[changed]]\ndate = 2026-01-31\nold = \"x\"\n[claim]", "'reason' is missing"},
      {"[claim]", "[result]\n[claim]", ":13: [result] must be the last table of the card"},
      {"row = 7", "result = {}", ":3: 'result' must be a table that begins with a line [result]"},
  };
  for (const auto& [from, to, why] : wrong) {
    SCOPED_TRACE(why);
    const auto path = put(replaced(kCard, from, to));
    expect_error(Errc::usage, why, [&] { (void)read_card(path); });
    expect_error(Errc::usage, path.string() + ":", [&] { (void)read_card_to_run(path); });
  }
  expect_error(Errc::not_found, "there is no such card",
               [&] { (void)read_card(folder_ / "none.toml"); });
  fs::create_directories(folder_ / "folder.toml");
  expect_error(Errc::io, "cannot be read", [&] { (void)read_card(folder_ / "folder.toml"); });
}

TEST_F(PaperCard, DigestsAreOfWhatIsClaimedAndRunHoweverItIsWritten) {
  const auto plain = card();
  EXPECT_EQ(claim_digest(plain.claim), sha256_hex(kClaimContent));
  EXPECT_EQ(command_digest(plain), sha256_hex(kCommandContent));
  const auto digests = [&](const char* from, const char* to) {
    const auto changed = card(replaced(kCard, from, to));
    return std::pair{claim_digest(changed.claim) == claim_digest(plain.claim),
                     command_digest(changed) == command_digest(plain)};
  };
  constexpr std::pair kSame{true, true}, kOtherClaim{false, true}, kOtherCommand{true, false};
  EXPECT_EQ(digests("text = \"The", "# a remark\ntext   =   \"The"), kSame);
  EXPECT_EQ(digests("at_most = 0.5", "at_most = 5e-1"), kSame);
  EXPECT_EQ(digests("\"8\"]", "\"9\"]"), kSame) << "a smoke run shows nothing";
  EXPECT_EQ(digests("row = 7", "why_not = \"It is made up.\""), kSame);
  EXPECT_EQ(digests("seven tenths", "eight tenths"), kOtherClaim);
  EXPECT_EQ(digests("at_most = 0.5", "at_most = 0.6"), kOtherClaim);
  EXPECT_EQ(digests("at_least = 0.75", "at_most = 0.75"), kOtherClaim);
  EXPECT_EQ(digests(", times = \"/rows/1/kl\"", ""), kOtherClaim);
  EXPECT_EQ(digests("size=8", "size=9"), kOtherCommand);
}

TEST_F(PaperCard, AFileThatTheCommandNamesIsPartOfIt) {
  const auto text =
      replaced(kCard, "[\"bench\", \"gaps\", \"--kv\"", "[\"train\", \"made-up/a.toml\"");
  const auto without = command_digest(card(text));
  write("papers/made-up/a.toml", "steps = 3\n");
  const auto read = card(text);
  const auto three = command_digest(read);
  write("papers/made-up/a.toml", "steps = 4\n");
  EXPECT_NE(three, without);
  EXPECT_NE(command_digest(read), three);
  const auto words = resolved_command(read, read.claim.command);
  EXPECT_EQ(words.at(0), "train");
  EXPECT_EQ(words.at(1), (folder_ / "papers/made-up/a.toml").string());
}

TEST_F(PaperCard, CriteriaAreHeldAgainstWhatWasPrinted) {
  const auto criteria = card().claim.criteria;
  const auto judged =
      judge(criteria, Json::parse(R"({"rows": [{"kl": 0.75, "agreement": 0.7}, {"kl": 1.0}]})"));
  ASSERT_EQ(judged.size(), 2u);
  EXPECT_EQ(judged[0].name, "gap");
  EXPECT_EQ(judged[0].value, 0.75);
  EXPECT_EQ(judged[0].bound, 0.5 * 1.0 + 0.25);
  EXPECT_TRUE(judged[0].met) << "the bound itself is allowed";
  EXPECT_EQ(judged[1].value, 0.7);
  EXPECT_EQ(judged[1].bound, 0.75);
  EXPECT_FALSE(judged[1].met);
  EXPECT_EQ(verdict_of(judged), Verdict::partly_shown);
  const auto met = [&](double kl, double agreement, double other) {
    Json figures;
    figures["rows"] = {{{"kl", kl}, {"agreement", agreement}}, {{"kl", other}}};
    return judge(criteria, figures);
  };
  EXPECT_EQ(verdict_of(met(0.5, 0.75, 0.5)), Verdict::shown);
  EXPECT_EQ(verdict_of(met(0.51, 0.74, 0.5)), Verdict::not_shown);
  const Criterion passed{"passed", "/passed", false, 1, {}, 0};
  EXPECT_TRUE(judge({passed}, Json::parse(R"({"passed": true})")).at(0).met);
  EXPECT_FALSE(judge({passed}, Json::parse(R"({"passed": false})")).at(0).met);
}

TEST_F(PaperCard, WhatACriterionDoesNotFindIsNamed) {
  const auto criteria = card().claim.criteria;
  const std::pair<const char*, const char*> wrong[] = {
      {R"({"rows": []})", "'gap': the command printed nothing at /rows/0/kl: /rows is a list of 0"},
      {R"({"row": 1, "n": 2})", "at /rows/0/kl: the whole is an object with row, n"},
      {R"({"rows": [{"kl": 1, "agreement": 1}, {}]})", "/rows/1 is an object with no keys"},
      {R"({"rows": [{"kl": null}, {"kl": 1}]})", "at /rows/0/kl the command printed a null, not a"},
      {R"({"rows": [{"kl": "low"}, {"kl": 1}]})", "printed a string, not a number"},
      {R"({"rows": {"first": 1}})", "/rows is an object with first"},
      {"[]", "the whole is a list of 0"},
      {"3", "the whole is a number"},
  };
  for (const auto& [printed, why] : wrong)
    expect_error(Errc::invalid, why, [&, p = printed] { (void)judge(criteria, Json::parse(p)); });
  const Criterion huge{"huge", "/a", true, 1e300, "/b", 0};
  expect_error(Errc::invalid, "its bound is no finite number",
               [&] { (void)judge({huge}, Json::parse(R"({"a": 1, "b": 1e300})")); });
}

TEST_F(PaperCard, AResultIsAddedBehindAndReplacedAndReadsBack) {
  for (const auto* end : {"", "\n", "# the last line"}) {
    const auto before = std::string(kCard) + end;
    const auto path = put(before);
    write_result(path, partly());
    const auto once = content(path);
    EXPECT_EQ(once.substr(0, before.size()), before);
    EXPECT_NE(once.find("\n\n[result]  # written by `mneme paper run`"), std::string::npos) << once;
    const auto read = read_card(path);
    ASSERT_TRUE(read.result.has_value());
    const auto expected = partly();
    EXPECT_EQ(read.result->verdict, Verdict::partly_shown);
    ASSERT_EQ(read.result->criteria.size(), 2u);
    EXPECT_EQ(read.result->criteria[0].value, 0.5);
    EXPECT_EQ(read.result->criteria[0].bound, 0.5625);
    EXPECT_TRUE(read.result->criteria[0].met);
    EXPECT_EQ(read.result->criteria[1].value, 0.7) << "to the last bit";
    EXPECT_EQ(read.result->claim_digest, expected.claim_digest);
    EXPECT_EQ(read.result->seed, 3);
    EXPECT_EQ(read.result->commit, expected.commit);
    EXPECT_FALSE(read.result->dirty);
    EXPECT_EQ(read.result->machine, expected.machine);
    EXPECT_EQ(read.result->torch, "2.13.0");
    EXPECT_NEAR(read.result->seconds, 12.25, 0.051);
    EXPECT_EQ(read.result->date, "2026-03-04");
    EXPECT_EQ(standing(read), "partly shown");
    EXPECT_FALSE(stale(read));

    write_result(path, partly());
    EXPECT_EQ(content(path), once) << "writing it again changes nothing";
    auto other = partly();
    other.seed = 4;
    write_result(path, other);
    EXPECT_EQ(content(path), replaced(once, "seed = 3", "seed = 4"));
    EXPECT_EQ(entries(path.parent_path()), 1u) << "nothing stays beside it";
  }
}

TEST_F(PaperCard, AWordResultInATextIsNotTheTable) {
  const auto text = replaced(kCard, "reports = \"It is half as bad.\"",
                             "reports = '''\n[result]\nverdict = \"shown\"\n'''");
  const auto path = put(text);
  write_result(path, partly());
  write_result(path, partly());
  EXPECT_EQ(content(path).substr(0, text.size()), text);
  EXPECT_EQ(standing(read_card(path)), "partly shown");
}

TEST_F(PaperCard, ACardThatIsBrokenByNowKeepsItsContent) {
  const auto path = put("slug = ");
  expect_error(Errc::usage, ":1: ", [&] { write_result(path, partly()); });
  EXPECT_EQ(content(path), "slug = ");
  EXPECT_EQ(entries(path.parent_path()), 1u);
}

TEST_F(PaperCard, AResultThatSomebodyTouchedIsRefusedAndCanBeMeasuredAnew) {
  const auto text = with_result();
  const std::pair<std::pair<const char*, const char*>, const char*> touched[] = {
      {{"verdict = \"partly shown\"", "verdict = \"shown\""},
       "the verdict is 'shown' where its criteria make it 'partly shown'"},
      {{"verdict = \"partly shown\"", "verdict = \"proved\""}, "'verdict' is 'proved', it can be"},
      {{"verdict = \"partly shown\"", "verdict = \"shown\"\nwhy = \"\""}, "unknown key 'why'"},
      {{"value = 0.7,", "value = 0.8,"}, "'agreement' with the value 0.8 and the bound 0.75"},
      {{"bound = 0.75, met = false", "bound = 0.65, met = false"}, "is recorded as not met"},
      {{"value = 0.5, bound = 0.5625", "value = 0.6, bound = 0.5625"}, "is recorded as met"},
      {{"{ name = \"agreement\", value", "{ name = \"agrees\", value"},
       "its criteria are not those of the claim"},
      {{"seed = 3\n", ""}, "'seed' is missing in [result]"},
      {{"date = 2026-03-04", "date = \"soon\""}, "'date' must be a date"},
  };
  for (const auto& [change, why] : touched) {
    auto changed = replaced(text, change.first, change.second);
    if (std::string_view(why).starts_with("unknown key"))
      changed = replaced(changed, "verdict = \"shown\"", "verdict = \"partly shown\"");
    const auto path = put(changed);
    expect_error(Errc::usage, why, [&] { (void)read_card(path); });
    EXPECT_FALSE(read_card_to_run(path).result.has_value()) << why;
    write_result(path, partly());
    EXPECT_EQ(content(path), text) << why;
  }
  // Both criteria and the verdict at once.
  const auto all = replaced(replaced(text, "verdict = \"partly shown\"", "verdict = \"shown\""),
                            "met = false", "met = true");
  expect_error(Errc::usage, "is recorded as met", [&] { (void)card(all); });
}

TEST_F(PaperCard, AResultOfAnotherClaimIsStaleAndTheChangeMustBeExplained) {
  const auto text = with_result();
  EXPECT_FALSE(change_is_unexplained(card(text)));
  const auto other_claim = card(replaced(text, "seven tenths", "eight tenths"));
  EXPECT_TRUE(stale(other_claim));
  EXPECT_EQ(standing(other_claim), "stale");
  EXPECT_TRUE(change_is_unexplained(other_claim));
  const auto explained = [&](const char* date) {
    return card(replaced(replaced(text, "seven tenths", "eight tenths"), "[result]",
                         fmt::format("[[changed]]\ndate = {}\nold = \"seven\"\nreason = \"x\"\n\n"
                                     "[result]",
                                     date)));
  };
  EXPECT_TRUE(change_is_unexplained(explained("2026-03-03"))) << "that was an earlier change";
  EXPECT_FALSE(change_is_unexplained(explained("2026-03-04")));
  EXPECT_FALSE(change_is_unexplained(explained("\"2026-03-05\"")));
  EXPECT_TRUE(stale(explained("2026-03-05"))) << "explaining is not measuring";
  EXPECT_EQ(explained("2026-03-05").changed.at(0).old, "seven");

  const auto other_command = card(replaced(text, "size=8", "size=9"));
  EXPECT_EQ(standing(other_command), "stale");
  EXPECT_FALSE(change_is_unexplained(other_command));
  // Criteria that have gone are still shown with what was measured.
  EXPECT_EQ(standing(card(replaced(text, "name = \"agreement\", metric", "name = \"x\", metric"))),
            "stale");
}

TEST_F(PaperCard, ACommandIsRunAsTheCardSaysAndJudged) {
  ASSERT_EQ(::setenv("MNEME_KV", "quantize", 1), 0);
  ASSERT_EQ(::setenv("MNEME_MODELS", "/models", 1), 0);
  RunSettings settings;
  settings.program = program(
      "for word in \"$@\"; do echo \"$word\"; done > \"$(dirname \"$0\")/words\"\n"
      "echo \"$MNEME_KV|$MNEME_MODELS\" > \"$(dirname \"$0\")/settings\"\n"
      "echo at work >&2\n"
      "echo '{\"rows\": [{\"kl\": 0.5, \"agreement\": 0.5}, {\"kl\": 1}]}'\n");
  settings.seed = 11;
  settings.threads = 1;
  testing::internal::CaptureStderr();
  const auto done = run_claim(card(), settings);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "at work\n");
  EXPECT_EQ(content(folder_ / "bin/words"),
            "bench\n--json\n--seed\n11\n--config\n/dev/null\n--threads\n1\ngaps\n--kv\n"
            "window(size=8); quantize\n");
  EXPECT_EQ(content(folder_ / "bin/settings"), "|/models\n");
  EXPECT_EQ(done.figures["rows"][0]["kl"], 0.5);
  EXPECT_EQ(done.measured.verdict, Verdict::partly_shown);
  EXPECT_EQ(done.measured.criteria.at(0).bound, 0.75);
  EXPECT_EQ(done.measured.claim_digest, sha256_hex(kClaimContent));
  EXPECT_EQ(done.measured.command_digest, sha256_hex(kCommandContent));
  EXPECT_EQ(done.measured.seed, 11);
  EXPECT_NE(done.measured.machine.find(", 1 thread"), std::string::npos) << done.measured.machine;
  EXPECT_EQ(done.measured.date.size(), 10u);
  EXPECT_GE(done.measured.seconds, 0);

  settings.smoke = true;
  (void)run_claim(card(), settings);
  EXPECT_NE(content(folder_ / "bin/words").find("gaps\n--tokens\n8\n"), std::string::npos);
}

TEST_F(PaperCard, ManyFiguresComeThroughThePipe) {
  RunSettings settings;
  settings.program = program(
      "printf '{\"rows\": [{\"kl\": 0.5, \"agreement\": 0.8}, {\"kl\": 1}], \"more\": [0'\n"
      "i=0; while [ $i -lt 40000 ]; do printf ', %d' $i; i=$((i + 1)); done\n"
      "echo ']}'\n");
  const auto done = run_claim(card(), settings);
  EXPECT_EQ(done.figures["more"].size(), 40001u);
  EXPECT_EQ(done.measured.verdict, Verdict::shown);
}

TEST_F(PaperCard, ACommandThatGivesNothingToJudgeIsAFailureWithItsReason) {
  const std::pair<const char*, const char*> wrong[] = {
      {"exit 3", "its command failed with status 3; the command: mneme bench gaps --kv 'window("},
      {"echo '{}'; exit 1", "its command failed with status 1"},
      {"kill -9 $$", "its command was ended by signal 9"},
      {"true", "its command printed something else than one JSON value"},
      {"echo '{}'; echo '{}'", "something else than one JSON value"},
      {"echo done", "something else than one JSON value"},
      {"echo '{}'", "criterion 'gap': the command printed nothing at /rows/0/kl"},
  };
  for (const auto& [script, why] : wrong) {
    RunSettings settings;
    settings.program = program(std::string(script) + "\n");
    expect_error(Errc::invalid, why, [&] { (void)run_claim(card(), settings); });
    expect_error(Errc::invalid, "made-up-2024.toml: ", [&] { (void)run_claim(card(), settings); });
  }
  RunSettings settings;
  settings.program = folder_ / "bin/none";
  expect_error(Errc::io, "none: No such file", [&] { (void)run_claim(card(), settings); });
  settings.smoke = true;
  expect_error(Errc::usage, "has no 'smoke' in [claim]: run it without --smoke", [&] {
    (void)run_claim(
        card(replaced(kCard, "smoke = [\"bench\", \"gaps\", \"--tokens\", \"8\"]\n", "")),
        settings);
  });
}

TEST_F(PaperCard, TheCommitIsOfTheProgramsCheckout) {
  RunSettings settings;
  settings.program =
      program("echo '{\"rows\": [{\"kl\": 0.5, \"agreement\": 0.5}, {\"kl\": 1}]}'\n");
  EXPECT_EQ(run_claim(card(), settings).measured.commit, "unknown");
  EXPECT_TRUE(run_claim(card(), settings).measured.dirty);
  const auto git = [&](const std::string& what) {
    return std::system(fmt::format("cd '{}' && git -c user.name=a -c user.email=a@b {} > /dev/null "
                                   "2>&1",
                                   folder_.string(), what)
                           .c_str()) == 0;
  };
  if (!git("init")) GTEST_SKIP() << "git is not installed";
  ASSERT_TRUE(git("add -A") && git("commit -m first"));
  const auto clean = run_claim(card(), settings).measured;
  EXPECT_EQ(clean.commit.size(), 40u) << clean.commit;
  EXPECT_FALSE(clean.dirty);
  write_result(put(kCard), clean);
  EXPECT_FALSE(run_claim(card(with_result()), settings).measured.dirty) << "cards do not count";
  write("source.cpp", "int x;\n");
  const auto dirty = run_claim(card(), settings).measured;
  EXPECT_EQ(dirty.commit, clean.commit);
  EXPECT_TRUE(dirty.dirty);
}

TEST_F(PaperCard, CtrlCEndsTheCommandToo) {
  RunSettings settings;
  settings.program = program("echo $$ > \"$(dirname \"$0\")/process\"\nexec sleep 60\n");
  const auto read = card();
  watch_interrupts();
  std::thread user([&] {
    while (content(folder_ / "bin/process").empty())
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    std::raise(SIGTERM);
  });
  EXPECT_THROW((void)run_claim(read, settings), Interrupted);
  user.join();
  resume_after_interrupt();
  const auto process = std::stoi(content(folder_ / "bin/process"));
  EXPECT_NE(::kill(process, 0), 0) << "it still runs";
}

TEST_F(PaperCard, TheVerbListsShowsAndCounts) {
  const auto cards = (folder_ / "papers").string();
  const auto with = [&](std::vector<std::string> words) {
    words.insert(words.begin(), "paper");
    words.insert(words.end(), {"--cards", cards});
    return run_with(words);
  };
  put(kCard);
  write("papers/other-2024.toml",
        replaced(replaced(kCard, "made-up-2024", "other-2024"), "row = 7\n", ""));
  auto said = with({"list"});
  EXPECT_EQ(said.out,
            "   7 made-up-2024  pending       Made Up\n"
            "   - other-2024    pending       Made Up\n");
  put(replaced(with_result(), "[result]",
               "[[changed]]\ndate = 2026-03-04\nold = \"six\"\nreason = \"a | b\"\n\n[result]"));
  said = with({"list"});
  EXPECT_NE(said.out.find("partly shown  gap 0.5 (at most 0.5625)"), std::string::npos) << said.out;
  said = with({"show", kSlug});
  EXPECT_EQ(said.status, 0) << said.err;
  for (const auto* part :
       {"row 7, kv-memory", "mneme bench gaps --kv 'window(size=8); quantize'",
        "gap: /rows/0/kl at most 0.5 times /rows/1/kl plus 0.25", "2026-03-04: was \"six\"; a | b",
        "verdict     partly shown", "not met", "at least 0.75", "seed 3", "A \"fast\" one, avx2"}) {
    EXPECT_NE(said.out.find(part), std::string::npos) << part << "\n" << said.out;
  }
  said = with({"table"});
  EXPECT_NE(said.out.find("2 cards: 1 partly shown, 1 pending; claims were changed 1 time\n"),
            std::string::npos)
      << said.out;
  said = with({"table", "--json"});
  const auto table = Json::parse(said.out);
  ASSERT_EQ(table.size(), 2u);
  EXPECT_EQ(table[0]["standing"], "partly shown");
  EXPECT_EQ(table[0]["stale"], false);
  EXPECT_EQ(table[0]["result"]["criteria"][1]["met"], false);
  EXPECT_EQ(table[0]["changed"][0]["old"], "six");
  EXPECT_TRUE(table[1]["row"].is_null());
  EXPECT_TRUE(table[1]["result"].is_null());
  EXPECT_EQ(table[1]["claim"]["criteria"][0]["at_most"], 0.5);

  const std::pair<std::vector<std::string>, const char*> wrong[] = {
      {{"lisst"}, "no 'lisst', did you mean 'list'?"},
      {{"show"}, "name a card"},
      {{"list", kSlug}, "is about all cards; for one of them: mneme paper show made-up-2024"},
      {{"show", kSlug, "--smoke"}, "--smoke goes with `paper run`"},
  };
  for (const auto& [words, why] : wrong) {
    said = with(words);
    EXPECT_EQ(said.status, 2) << said.err;
    EXPECT_NE(said.err.find(why), std::string::npos) << said.err;
    EXPECT_EQ(said.out, "");
  }
  said = with({"show", "made-2024"});
  EXPECT_EQ(said.status, 1);
  EXPECT_NE(said.err.find("no card 'made-2024', did you mean 'made-up-2024'?"), std::string::npos);
  put("slug = ");
  EXPECT_EQ(with({"list"}).status, 2);
  EXPECT_EQ(with({"show", "other-2024"}).status, 0) << "a card is not held to the others";
  said = run_with({"paper", "list", "--cards", (folder_ / "none").string()});
  EXPECT_EQ(said.status, 1);
  EXPECT_NE(said.err.find("--cards: "), std::string::npos) << said.err;
}

TEST_F(PaperCard, AClaimThatChangedWithoutAWordIsNotMeasured) {
  put(replaced(with_result(), "seven tenths", "eight tenths"));
  const auto said = run_with({"paper", "run", kSlug, "--cards", (folder_ / "papers").string()});
  EXPECT_EQ(said.status, 2);
  EXPECT_EQ(said.out, "");
  EXPECT_NE(said.err.find("the claim has changed since it was measured on 2026-03-04: add "
                          "[[changed]] with date, old (what it said) and reason"),
            std::string::npos)
      << said.err;
}

// What was measured is what the cards now claim: a changed claim or command must be run again.
TEST(PapersOfTheCheckout, AreValidAndTheirResultsFit) {
  const auto files = card_files("");
  for (const auto& file : files) {
    SCOPED_TRACE(file.filename().string());
    try {
      const auto card = read_card(file);
      EXPECT_FALSE(stale(card)) << "`mneme paper run " << card.slug << "` measures it anew";
    } catch (const Error& error) {
      ADD_FAILURE() << error.what();
    }
  }
}

TEST(PapersOfTheCheckout, NameTheComponentsThatNameThem) {
  std::map<std::string, std::vector<std::string>> components;
  for (const auto& file : card_files("")) {
    const auto card = read_card(file);
    components[card.slug] = card.components;
  }
  for (const auto* component : registry().components()) {
    const auto card = components.find(component->card);
    if (card == components.end()) continue;
    const auto name = component->kind + "/" + component->name;
    EXPECT_TRUE(std::find(card->second.begin(), card->second.end(), name) != card->second.end())
        << "papers/" << card->first << ".toml does not name " << name << ", which names it";
  }
}

}  // namespace
}  // namespace mneme::cli
