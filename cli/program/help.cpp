#include "cli/program/help.h"

#include "cli/program/output.h"
#include <algorithm>
#include <fmt/format.h>

namespace mneme::cli {
namespace {

constexpr std::size_t kWidth = 100;

// Words in lines of kWidth columns, all but the first line indented.
std::string wrapped(std::string_view text, std::size_t column) {
  std::string out;
  auto at = column;
  while (!text.empty()) {
    const auto end = std::min(text.find(' '), text.size());
    const auto word = text.substr(0, end);
    if (at > column && at + 1 + word.size() > kWidth) {
      out += "\n" + std::string(column, ' ');
      at = column;
    } else if (at > column) {
      out += ' ';
      ++at;
    }
    out += word;
    at += word.size();
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

struct Row {
  std::string left, right;
};

std::string table(const std::vector<Row>& rows) {
  std::size_t width = 0;
  for (const auto& row : rows) {
    if (row.left.size() <= 28) width = std::max(width, row.left.size());
  }
  std::string out;
  for (const auto& row : rows) {
    const auto column = width + 4;
    out += "  " + row.left;
    out += row.left.size() > width ? "\n" + std::string(column, ' ')
                                   : std::string(column - 2 - row.left.size(), ' ');
    out += wrapped(row.right, column) + "\n";
  }
  return out;
}

std::vector<Row> rows_of(const Flags& flags) {
  std::vector<Row> rows;
  for (const auto& setting : flags.settings()) {
    const auto value = setting.as_toml();
    const bool shown = !value.empty() && value != "false" && value != "true" && value != "\"\"";
    rows.push_back({setting.spelling,
                    shown ? fmt::format("{} (default {})", setting.help, value) : setting.help});
  }
  return rows;
}

std::string heading(std::string_view text) { return "\n" + bold(text) + "\n"; }

}  // namespace

std::string usage_line(const About& about) {
  auto out = "mneme " + about.name + " [FLAG...]";
  for (const auto& positional : about.positionals) {
    const auto name = positional.name + (positional.repeated ? "..." : "");
    out += positional.required ? " " + name : " [" + name + "]";
  }
  return out;
}

std::string verb_help(const About& about, const Flags& own, const Flags& everywhere) {
  auto out = fmt::format("{}: {}\n", bold("mneme " + about.name), about.summary);
  out += heading("Usage") + "  " + usage_line(about) + "\n";
  std::vector<Row> rows;
  for (const auto& positional : about.positionals)
    rows.push_back({positional.name, positional.help});
  if (!rows.empty()) out += "\n" + table(rows);
  if (!about.more.empty()) out += "\n" + wrapped(about.more, 0) + "\n";
  out += heading(about.examples.size() == 1 ? "Example" : "Examples");
  for (const auto& example : about.examples) out += "  " + example + "\n";
  if (!own.settings().empty()) out += heading("Flags") + table(rows_of(own));
  return out + heading("Flags of every verb") + table(rows_of(everywhere));
}

std::string overview(const std::vector<std::unique_ptr<Verb>>& verbs, const Flags& everywhere) {
  auto out = fmt::format("{}: memory for language models. Read a long text once, ask it forever.\n",
                         bold("mneme"));
  out +=
      heading("Usage") +
      "  mneme VERB [FLAG...] ...        `mneme VERB --help` says more of each, with an example\n";
  const std::pair<Group, const char*> groups[] = {{Group::main_job, "Read, and ask"},
                                                  {Group::memory_file, "Memory files"},
                                                  {Group::model, "Models"},
                                                  {Group::program, "The program"}};
  for (const auto& [group, name] : groups) {
    std::vector<Row> rows;
    for (const auto& verb : verbs) {
      const auto about = verb->about();
      if (about.group == group) rows.push_back({fmt::format("{:<10}", about.name), about.summary});
    }
    if (!rows.empty()) out += heading(name) + table(rows);
  }
  out += heading("Example") +
         "  mneme read handbook.txt -o handbook.mneme\n"
         "  mneme ask handbook.mneme \"Who approves travel?\"\n";
  out += heading("Flags of every verb") + table(rows_of(everywhere));
  return out + "\n" +
         wrapped(
             "Every flag may also stand in the environment (MNEME_MAX_TOKENS=40 for --max-tokens "
             "40) and in a config file "
             "(max-tokens = 40, for one verb under [ask]): the command line goes before the "
             "environment, the environment "
             "before the file. Exit status: 0 done, 1 failed, 2 wrong usage.",
             0) +
         "\n";
}

}  // namespace mneme::cli
