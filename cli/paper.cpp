// mneme paper: the claims that come with mneme, each with the command that shows it and what it last measured.
#include "mneme/core/error.h"
#include "mneme/core/nearest.h"

#include "cli/program/output.h"
#include "cli/program/paper_card.h"
#include "cli/program/paper_run.h"
#include "cli/program/shell.h"
#include "cli/program/verb.h"
#include <algorithm>
#include <fmt/format.h>
#include <limits>
#include <map>

namespace mneme::cli {
namespace {

const std::vector<std::string> kActions{"list", "show", "run", "table"};
/// In the order in which a table counts them.
const std::vector<std::string> kStandings{"shown", "partly shown", "not shown", "stale", "pending"};

std::string relation(bool at_most) { return at_most ? "at most" : "at least"; }

/// "at most 0.7 times /rows/1/kl, plus 0.01"
std::string bar(const Criterion& criterion) {
  auto out = fmt::format("{} {}", relation(criterion.at_most), criterion.number);
  if (criterion.times) out += " times " + *criterion.times;
  if (criterion.plus != 0) out += fmt::format(" plus {}", criterion.plus);
  return out;
}

/// The criterion of the claim that was judged; null where the claim has changed since.
const Criterion* criterion_of(const Card& card, const Judged& judged) {
  for (const auto& criterion : card.claim.criteria) {
    if (criterion.name == judged.name) return &criterion;
  }
  return nullptr;
}

/// "gap 0.51 (at most 0.7)"
std::string measured(const Card& card, const Judged& judged) {
  const auto* criterion = criterion_of(card, judged);
  return fmt::format("{} {:.6g} ({} {:.6g})", judged.name, judged.value,
                     criterion == nullptr ? "bound" : relation(criterion->at_most), judged.bound);
}

void print_criteria(const Card& card, const std::vector<Judged>& criteria) {
  say("  {:<28} {:>12} {:>22}\n", "criterion", "measured", "bound");
  for (const auto& judged : criteria) {
    const auto* criterion = criterion_of(card, judged);
    const auto bound = fmt::format(
        "{}{:.6g}", criterion == nullptr ? "" : relation(criterion->at_most) + " ", judged.bound);
    say("  {:<28} {:>12.6g} {:>22}  {}\n", one_line(judged.name), judged.value, bound,
        judged.met ? "met" : bold("not met"));
  }
}

/// Text within a cell of a Markdown table.
std::string cell(std::string_view text) {
  std::string out;
  for (const char c : one_line(text)) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

class Paper final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::program,
            "paper",
            "what papers claim, shown here by a command: list, show, run, table",
            {{"list|show|run|table",
              "list: one line a card; show: all of one; run: measure it anew and keep the result "
              "in the card; table: all results as Markdown"},
             {"CARD", "which one, for show and run, as `mneme paper list` names it", false}},
            {"mneme paper list", "mneme paper show streaming-llm-2023",
             "mneme paper run streaming-llm-2023", "mneme paper table --json"},
            "A run prints its verdict (shown, partly shown, not shown) and exits 0 whatever it is, "
            "1 if the card's command fails. A result that was measured for another claim or "
            "command than the card now has is stale. docs/papers.md tells more."};
  }

  void declare(Flags& flags) override {
    flags("--cards", cards_, "FOLDER", "where cards lie; unset: those that come with mneme");
    flags("--smoke", smoke_,
          "with run: the command at its smallest size, which shows nothing and is not kept");
    flags("--json", json_, "print one JSON list (list, table) or object (show, run)");
    // A wish for one call; a file or an environment that never measures would be a trap.
    flags.find("smoke")->in_config = false;
    flags.find("smoke")->in_environment = false;
  }

  void run(const Invocation& call) override {
    const auto& action = call.arguments.at(0);
    if (std::find(kActions.begin(), kActions.end(), action) == kActions.end()) {
      const auto near = did_you_mean(action, kActions);
      throw Error(Errc::usage, fmt::format("paper: no '{}'{} there are {}", action,
                                           near.empty() ? ":" : near, fmt::join(kActions, ", ")));
    }
    const bool of_one = action == "show" || action == "run", named = call.arguments.size() > 1;
    if (of_one && !named) {
      throw Error(Errc::usage,
                  fmt::format("paper {}: name a card, as `mneme paper list` does", action));
    }
    if (!of_one && named) {
      throw Error(Errc::usage, fmt::format("paper {}: is about all cards; for one of them: mneme "
                                           "paper show {}",
                                           action, call.arguments[1]));
    }
    if (smoke_ && action != "run")
      throw Error(Errc::usage, fmt::format("--smoke goes with `paper run`, not {}", action));

    const auto files = card_files(cards_);
    if (action == "run") {
      measure(read_card_to_run(find_card(files, call.arguments[1])), call.everywhere);
    } else if (action == "show") {
      show(read_card(find_card(files, call.arguments[1])));
    } else {
      std::vector<Card> cards;
      for (const auto& file : files) cards.push_back(read_card(file));
      action == "list" ? list(cards) : table(cards);
    }
  }

 private:
  void list(const std::vector<Card>& cards) const {
    if (json_) {
      auto out = Json::array();
      for (const auto& card : cards) {
        out.push_back({{"row", card.row ? Json(*card.row) : Json()},
                       {"slug", card.slug},
                       {"standing", standing(card)},
                       {"title", card.title}});
      }
      print_json(out);
      return;
    }
    std::size_t width = 0;
    for (const auto& card : cards) width = std::max(width, card.slug.size());
    for (const auto& card : cards) {
      const auto& what = card.result ? measured(card, card.result->criteria.front()) : card.title;
      say("{:>4} {:<{}}  {:<12}  {}\n", card.row ? std::to_string(*card.row) : "-", card.slug,
          width, standing(card), one_line(what));
    }
  }

  void table(const std::vector<Card>& cards) const {
    if (json_) {
      auto out = Json::array();
      for (const auto& card : cards) out.push_back(as_json(card));
      print_json(out);
      return;
    }
    std::map<std::string, std::int64_t> counts;
    std::int64_t changes = 0;
    write(
        "| row | card | family | claim | verdict | measured | claim changed |\n"
        "|--:|---|---|---|---|---|--:|\n");
    for (const auto& card : cards) {
      const auto now = standing(card);
      ++counts[now];
      changes += static_cast<std::int64_t>(card.changed.size());
      std::string figures;
      if (card.result) {
        for (const auto& judged : card.result->criteria)
          figures += (figures.empty() ? "" : "; ") + measured(card, judged);
        figures += fmt::format("; {}", card.result->date);
      }
      say("| {} | {} | {} | {} | {} | {} | {} |\n", card.row ? std::to_string(*card.row) : "",
          card.slug, cell(card.family), cell(card.claim.text), now, cell(figures),
          card.changed.empty() ? "" : std::to_string(card.changed.size()));
    }
    std::string sums;
    for (const auto& standing : kStandings) {
      if (counts[standing] > 0)
        sums += fmt::format("{}{} {}", sums.empty() ? "" : ", ", counts[standing], standing);
    }
    say("\n{}: {}; claims were changed {}\n",
        counted(static_cast<std::int64_t>(cards.size()), "card"), sums, counted(changes, "time"));
  }

  void show(const Card& card) const {
    if (json_) {
      print_json(as_json(card));
      return;
    }
    const auto line = [](std::string_view label, std::string_view text) {
      if (!text.empty()) say("{:<11} {}\n", label, one_line(text));
    };
    say("{}  {}{}\n", bold(card.slug), card.row ? fmt::format("row {}, ", *card.row) : "",
        one_line(card.family));
    line("title", card.title);
    line("source", fmt::format("{} {}, {}", card.authors, card.year, card.source));
    line("components", fmt::format("{}", fmt::join(card.components, ", ")));
    line("reports", card.reports);
    for (const auto& choice : card.departs) line("departs", choice);
    say("\n");
    line("claim", card.claim.text);
    line("command", "mneme " + shell_line(card.claim.command));
    if (!card.claim.smoke.empty()) line("smoke", "mneme " + shell_line(card.claim.smoke));
    for (const auto& criterion : card.claim.criteria)
      line("criterion", fmt::format("{}: {} {}", criterion.name, criterion.metric, bar(criterion)));
    for (const auto& [date, old, reason] : card.changed)
      line("changed", fmt::format("{}: was \"{}\"; {}", date, old, reason));
    say("\n");
    line("verdict", standing(card));
    if (const auto& result = card.result) {
      if (stale(card)) {
        line("", fmt::format("it was {} for another claim or command: `mneme paper run {}` "
                             "measures this one",
                             name(result->verdict), card.slug));
      }
      print_criteria(card, result->criteria);
      line("measured", fmt::format("{} in {}, seed {}", result->date, as_duration(result->seconds),
                                   result->seed));
      line("on", fmt::format("{}; libtorch {}", result->machine, result->torch));
      line("commit", result->commit + (result->dirty ? ", with changes" : ""));
    }
    line("why not", card.why_not);
  }

  void measure(const Card& card, const Everywhere& everywhere) const {
    if (everywhere.seed > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      throw Error(Errc::usage, "--seed: a card can keep seeds below 2^63: give a smaller one");
    // Whatever can be wrong is looked at before what takes long.
    const auto& command = command_of(card, smoke_);
    if (!smoke_) {
      if (change_is_unexplained(card)) {
        throw Error(Errc::usage,
                    fmt::format("{}: the claim has changed since it was measured on {}: add "
                                "[[changed]] with date, old (what it said) and reason",
                                card.path.string(), card.result->date));
      }
      check_result_can_be_written(card.path);
    }
    if (!json_) {
      say("{}  {}\n{} mneme {}\n", bold(card.slug), one_line(card.claim.text), faint("$"),
          shell_line(command));
      flush();
    }
    RunSettings settings;
    settings.smoke = smoke_;
    settings.seed = static_cast<std::int64_t>(everywhere.seed);
    settings.threads = everywhere.threads;
    settings.quiet = everywhere.quiet;
    const auto done = run_claim(card, settings);
    if (!smoke_) write_result(card.path, done.measured);
    if (json_) {
      auto criteria = Json::array();
      for (const auto& [name, value, bound, met] : done.measured.criteria)
        criteria.push_back({{"name", name}, {"value", value}, {"bound", bound}, {"met", met}});
      print_json({{"slug", card.slug},
                  {"smoke", smoke_},
                  {"verdict", smoke_ ? Json() : Json(name(done.measured.verdict))},
                  {"criteria", std::move(criteria)},
                  {"seconds", done.measured.seconds},
                  {"written", smoke_ ? Json() : Json(card.path.string())},
                  {"figures", done.figures}});
      return;
    }
    print_criteria(card, done.measured.criteria);
    if (smoke_) {
      say("a smoke run: nothing is kept, and nothing counts as shown\n");
    } else {
      say("{}, kept in {}\n", bold(name(done.measured.verdict)), card.path.string());
    }
  }

  std::string cards_;
  bool smoke_ = false, json_ = false;
};

}  // namespace

std::unique_ptr<Verb> paper_verb() { return std::make_unique<Paper>(); }

}  // namespace mneme::cli
