#include "cli/program/paper_card.h"

#include "mneme/core/error.h"
#include "mneme/core/nearest.h"
#include "mneme/core/registry.h"
#include "mneme/models/locate.h"
#include "mneme/weights/atomic_file.h"
#include "mneme/weights/digests.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fmt/format.h>
#include <fstream>
#include <iterator>
#include <limits>
#include <regex>
#include <span>
#include <toml++/toml.h>

namespace mneme::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kEnding = ".toml", kHeader = "[result]";
constexpr std::array<std::string_view, 3> kVerdicts = {"shown", "partly shown", "not shown"};
/// What `paper run` gives every command itself.
constexpr std::array<std::string_view, 4> kGivenFlags = {"--json", "--seed", "--threads",
                                                         "--config"};

/// One table of a card: takes out the keys that it is asked for and complains about the others.
class Table {
 public:
  Table(const fs::path& path, std::string name, const toml::table& content)
      : path_(path), name_(std::move(name)), content_(content) {}

  const toml::node* take(const char* key) {
    known_.emplace_back(key);
    return content_.get(key);
  }
  const toml::node& need(const char* key, std::string_view form) {
    const auto* node = take(key);
    if (node == nullptr) missing(key, form);
    return *node;
  }

  std::string text(const char* key) {
    const auto& node = need(key, "text in quotation marks");
    const auto out = text_of(key, node);
    if (out.find_first_not_of(" \t\r\n") == std::string::npos)
      fail(node, fmt::format("'{}' is empty: say it", key));
    return out;
  }
  std::string optional_text(const char* key) {
    const auto* node = take(key);
    return node == nullptr ? "" : text_of(key, *node);
  }
  std::vector<std::string> texts(const char* key, bool required) {
    constexpr std::string_view kForm = "a list of texts, [\"...\", \"...\"]";
    const auto* node = take(key);
    if (node == nullptr) {
      if (required) missing(key, kForm);
      return {};
    }
    const auto* list = node->as_array();
    if (list == nullptr) fail(*node, fmt::format("'{}' must be {}", key, kForm));
    std::vector<std::string> out;
    for (const auto& item : *list) {
      out.push_back(text_of(key, item));
      if (out.back().empty()) fail(item, fmt::format("'{}' holds an empty text", key));
    }
    if (required && out.empty()) fail(*node, fmt::format("'{}' is empty: name at least one", key));
    return out;
  }
  std::int64_t integer(const char* key, std::int64_t least,
                       std::int64_t most = std::numeric_limits<std::int64_t>::max()) {
    const auto form = fmt::format("a whole number of at least {}", least);
    const auto& node = need(key, form);
    const auto* number = node.as_integer();
    if (number == nullptr || number->get() < least || number->get() > most)
      fail(node, fmt::format("'{}' must be {}", key, form));
    return number->get();
  }
  double number(const char* key) {
    const auto& node = need(key, "a number");
    const auto value = node.value<double>();
    if (!node.is_number() || !value || !std::isfinite(*value))
      fail(node, fmt::format("'{}' must be a finite number", key));
    return *value;
  }
  bool truth(const char* key) {
    const auto& node = need(key, "true or false");
    if (!node.is_boolean()) fail(node, fmt::format("'{}' must be true or false", key));
    return node.as_boolean()->get();
  }
  std::string date(const char* key) {
    constexpr std::string_view kForm = "a date, as in 2026-01-31";
    const auto& node = need(key, kForm);
    std::string out;
    if (const auto* date = node.as_date()) {
      const auto d = date->get();
      out = fmt::format("{:04}-{:02}-{:02}", d.year, d.month, d.day);
    } else if (const auto* text = node.as_string()) {
      out = text->get();
    }
    static const std::regex form("[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])");
    if (!std::regex_match(out, form)) fail(node, fmt::format("'{}' must be {}", key, kForm));
    return out;
  }
  /// A JSON pointer.
  std::string pointer(const char* key) {
    const auto out = text(key);
    try {
      (void)Json::json_pointer(out);
    } catch (const Json::exception&) {
      fail_at(key,
              fmt::format("'{}' is '{}', which is no JSON pointer: it names a place in what the "
                          "command prints, as in /rows/0/kl",
                          key, out));
    }
    return out;
  }
  /// The tables of a list.
  std::vector<Table> tables(const char* key, std::string_view form, bool required) {
    const auto* node = take(key);
    if (node == nullptr) {
      if (required) missing(key, form);
      return {};
    }
    const auto* list = node->as_array();
    if (list == nullptr || list->empty()) fail(*node, fmt::format("'{}' must be {}", key, form));
    std::vector<Table> out;
    for (const auto& item : *list) {
      if (!item.is_table()) fail(item, fmt::format("'{}' must be {}", key, form));
      out.emplace_back(path_, key, *item.as_table());
    }
    return out;
  }
  Table table(const char* key) {
    const auto form = fmt::format("a table, [{}]", key);
    const auto& node = need(key, form);
    if (!node.is_table()) fail(node, fmt::format("'{}' must be {}", key, form));
    return {path_, key, *node.as_table()};
  }

  /// All keys have been asked for: any other is unknown.
  void done() const {
    for (const auto& [key, node] : content_) {
      const std::string name(key.str());
      if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
      fail(node,
           fmt::format("unknown {} '{}'{}{}", node.is_table() ? "table" : "key", name,
                       name_.empty() ? "" : " in [" + name_ + "]", did_you_mean(name, known_)));
    }
  }

  [[noreturn]] void fail(const toml::node& node, const std::string& what) const {
    throw Error(Errc::usage,
                fmt::format("{}:{}: {}", path_.string(), node.source().begin.line, what));
  }
  [[noreturn]] void fail(const std::string& what) const { fail(content_, what); }
  /// About a key that is there.
  [[noreturn]] void fail_at(const char* key, const std::string& what) const {
    fail(*content_.get(key), what);
  }

 private:
  [[noreturn]] void missing(const char* key, std::string_view form) const {
    throw Error(Errc::usage, fmt::format("{}: '{}' is missing{}: add {}", path_.string(), key,
                                         name_.empty() ? "" : " in [" + name_ + "]", form));
  }
  [[nodiscard]] std::string text_of(const char* key, const toml::node& node) const {
    const auto* string = node.as_string();
    if (string == nullptr) fail(node, fmt::format("'{}' must be text in quotation marks", key));
    return string->get();
  }

  fs::path path_;
  std::string name_;
  const toml::table& content_;
  std::vector<std::string> known_;
};

std::string file_text(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error))
    throw Error(Errc::not_found, path.string() + ": there is no such card");
  const Error unreadable(Errc::io, path.string() + ": the card cannot be read");
  if (fs::is_directory(path, error)) throw unreadable;  // reading one ends in an exception
  std::ifstream in(path, std::ios::binary);
  std::string out{std::istreambuf_iterator<char>(in), {}};
  if (!in.is_open() || in.bad()) throw unreadable;
  return out;
}

toml::table parse(const fs::path& path, const std::string& text) {
  try {
    return toml::parse(text, path.string());
  } catch (const toml::parse_error& failure) {
    throw Error(Errc::usage, fmt::format("{}:{}: {}", path.string(), failure.source().begin.line,
                                         failure.description()));
  }
}

/// Where a line begins, counted from 1.
std::size_t line_begin(std::string_view text, std::size_t line) {
  std::size_t at = 0;
  for (; line > 1; --line) at = text.find('\n', at) + 1;
  return at;
}

/// The last line on which anything of a node begins.
toml::source_index last_line(const toml::node& node) {
  auto out = node.source().begin.line;
  if (const auto* list = node.as_array()) {
    for (const auto& item : *list) out = std::max(out, last_line(item));
  } else if (const auto* table = node.as_table()) {
    for (const auto& [key, item] : *table) out = std::max(out, last_line(item));
  }
  return out;
}

/// Where [result] begins, or the end of the text; throws Error(usage) unless it is the last table of the file.
std::size_t result_begin(const fs::path& path, std::string_view text, const toml::table& file) {
  const auto* result = file.get("result");
  if (result == nullptr) return text.size();
  const auto line = result->source().begin.line;
  const auto refuse = [&](const char* why) {
    throw Error(Errc::usage,
                fmt::format("{}:{}: {}: `mneme paper run` writes it", path.string(), line, why));
  };
  const auto at = line_begin(text, line);
  if (!result->is_table() || text.substr(at, kHeader.size()) != kHeader)
    refuse("'result' must be a table that begins with a line [result]");
  for (const auto& [key, node] : file) {
    if (&node != result && last_line(node) > line)
      refuse("[result] must be the last table of the card");
  }
  return at;
}

std::vector<std::string> read_command(Table& claim, const char* key, bool required) {
  auto out = claim.texts(key, required);
  if (out.empty()) return out;
  if (out.front().front() == '-')
    claim.fail_at(key,
                  fmt::format("'{}' must begin with a verb of mneme, as in [\"bench\", ...]", key));
  if (out.front() == "paper")
    claim.fail_at(key, fmt::format("'{}' runs `mneme paper`: name what it measures instead", key));
  for (const auto& word : out) {
    const auto flag = word.substr(0, word.find('='));
    if (std::find(kGivenFlags.begin(), kGivenFlags.end(), flag) != kGivenFlags.end()) {
      claim.fail_at(key, fmt::format("'{}' holds {}, which `mneme paper run` gives: leave it out",
                                     key, flag));
    }
  }
  return out;
}

Claim read_claim(Table& table) {
  Claim out;
  out.text = table.text("text");
  out.command = read_command(table, "command", true);
  out.smoke = read_command(table, "smoke", false);
  for (auto& item : table.tables(
           "criteria", "a list of tables, [{ name = \"...\", metric = \"/...\", at_most = 1.0 }]",
           true)) {
    Criterion criterion;
    criterion.name = item.text("name");
    criterion.metric = item.pointer("metric");
    criterion.at_most = item.take("at_most") != nullptr;
    if (criterion.at_most == (item.take("at_least") != nullptr)) {
      item.fail(fmt::format("criterion '{}' must have either at_most or at_least",
                            one_line(criterion.name)));
    }
    criterion.number = item.number(criterion.at_most ? "at_most" : "at_least");
    if (item.take("times") != nullptr) criterion.times = item.pointer("times");
    if (item.take("plus") != nullptr) criterion.plus = item.number("plus");
    item.done();
    for (const auto& other : out.criteria) {
      if (other.name == criterion.name)
        item.fail(fmt::format("two criteria are called '{}'", one_line(criterion.name)));
    }
    out.criteria.push_back(std::move(criterion));
  }
  table.done();
  return out;
}

Measured read_result(Table& table, const Card& card) {
  Measured out;
  const auto refuse = [&](const std::string& why) {
    table.fail(fmt::format("{}: [result] is written by `mneme paper run {}`, never by hand", why,
                           card.slug));
  };
  const auto verdict = table.text("verdict");
  const auto known = std::find(kVerdicts.begin(), kVerdicts.end(), verdict);
  if (known == kVerdicts.end())
    refuse(fmt::format("'verdict' is '{}', it can be {}", one_line(verdict),
                       fmt::join(kVerdicts, ", ")));
  out.verdict = static_cast<Verdict>(known - kVerdicts.begin());
  for (auto& item : table.tables("criteria", "a list of tables", true)) {
    auto& judged = out.criteria.emplace_back();
    judged.name = item.text("name");
    judged.value = item.number("value");
    judged.bound = item.number("bound");
    judged.met = item.truth("met");
    item.done();
  }
  out.claim_digest = table.text("claim_digest");
  out.command_digest = table.text("command_digest");
  out.seed = table.integer("seed", 0);
  out.commit = table.text("commit");
  out.dirty = table.truth("dirty");
  out.machine = table.text("machine");
  out.torch = table.text("torch");
  out.seconds = table.number("seconds");
  out.date = table.date("date");
  table.done();

  if (out.verdict != verdict_of(out.criteria)) {
    refuse(fmt::format("the verdict is '{}' where its criteria make it '{}'", verdict,
                       name(verdict_of(out.criteria))));
  }
  if (out.claim_digest != claim_digest(card.claim)) return out;
  const auto& criteria = card.claim.criteria;
  const bool same =
      std::equal(criteria.begin(), criteria.end(), out.criteria.begin(), out.criteria.end(),
                 [](const auto& a, const auto& b) { return a.name == b.name; });
  if (!same) refuse("its criteria are not those of the claim");
  for (std::size_t i = 0; i < criteria.size(); ++i) {
    const auto& [name, value, bound, met] = out.criteria[i];
    if (met != (criteria[i].at_most ? value <= bound : value >= bound)) {
      refuse(fmt::format("'{}' with the value {} and the bound {} is recorded as {}", name, value,
                         bound, met ? "met" : "not met"));
    }
  }
  return out;
}

enum class Result { checked, replaced };

Card read(const fs::path& path, Result how) {
  const auto text = file_text(path);
  const auto file = parse(path, text);
  result_begin(path, text, file);
  Card out;
  out.path = path;
  Table top(path, "", file);
  out.slug = top.text("slug");
  static const std::regex form("[a-z0-9]+(-[a-z0-9]+)*-(19|20)[0-9]{2}");
  if (!std::regex_match(out.slug, form)) {
    top.fail_at("slug", fmt::format("'slug' is '{}': it must be lower-case words and the year "
                                    "between dashes, as in streaming-llm-2023",
                                    one_line(out.slug)));
  }
  if (out.slug != path.stem().string()) {
    top.fail_at("slug", fmt::format("'slug' is '{}', but the file is {}: name both alike", out.slug,
                                    path.filename().string()));
  }
  if (top.take("row") != nullptr) out.row = top.integer("row", 0);
  out.title = top.text("title");
  out.authors = top.text("authors");
  out.year = top.integer("year", 1900, 2099);
  if (!out.slug.ends_with(fmt::format("-{}", out.year))) {
    top.fail_at("year", fmt::format("'year' is {}, but the slug is '{}'", out.year, out.slug));
  }
  out.source = top.text("source");
  out.family = top.text("family");
  out.components = top.texts("components", true);
  for (const auto& component : out.components) {
    const auto slash = component.find('/');
    try {
      if (slash == std::string::npos) {
        throw Error(
            Errc::usage,
            fmt::format("'{}' must be a kind and a name, as in kv_stage/window", component));
      }
      (void)registry().find(component.substr(0, slash), component.substr(slash + 1));
    } catch (const Error& error) {
      top.fail_at("components", fmt::format("'components': {}", error.what()));
    }
  }
  out.reports = top.text("reports");
  out.departs = top.texts("departs", false);
  out.why_not = top.optional_text("why_not");
  auto claim = top.table("claim");
  out.claim = read_claim(claim);
  for (auto& item : top.tables("changed", "tables [[changed]] with date, old and reason", false)) {
    auto& change = out.changed.emplace_back();
    change.date = item.date("date");
    change.old = item.text("old");
    change.reason = item.text("reason");
    item.done();
  }
  if (top.take("result") != nullptr) {
    try {
      auto table = top.table("result");
      out.result = read_result(table, out);
    } catch (const Error&) {
      if (how == Result::checked) throw;
    }
  }
  top.done();
  return out;
}

/// What stands at the end of a pointer, in words, and its keys or length.
std::string described(const Json& value) {
  if (value.is_array()) return fmt::format("a list of {}", value.size());
  if (!value.is_object()) return fmt::format("a {}", value.type_name());
  std::vector<std::string> keys;
  for (const auto& [key, ignored] : value.items()) keys.push_back(key);
  return fmt::format("an object with {}",
                     keys.empty() ? "no keys" : fmt::format("{}", fmt::join(keys, ", ")));
}

double number_at(const Criterion& criterion, const std::string& text, const Json& figures) {
  const Json::json_pointer pointer(text);
  const auto there = [&](const Json::json_pointer& p) -> const Json* {
    try {
      return &figures.at(p);
    } catch (const Json::exception&) {
      return nullptr;  // of the wrong kind, out of range, no such key
    }
  };
  const auto* value = there(pointer);
  if (value == nullptr) {
    auto nearest = pointer;
    while (!nearest.empty() && there(nearest) == nullptr) nearest = nearest.parent_pointer();
    const auto where = nearest.to_string();
    throw Error(
        Errc::invalid,
        fmt::format("criterion '{}': the command printed nothing at {}: {} is {}", criterion.name,
                    text, where.empty() ? "the whole" : where, described(*there(nearest))));
  }
  // Whether something passed is as good as a number.
  if (value->is_boolean()) return value->get<bool>() ? 1 : 0;
  if (!value->is_number() || !std::isfinite(value->get<double>())) {
    throw Error(Errc::invalid,
                fmt::format("criterion '{}': at {} the command printed {}, not a number",
                            criterion.name, text, described(*value)));
  }
  return value->get<double>();
}

std::string toml_text(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += fmt::format("\\{}", c);
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string result_text(const Measured& result) {
  auto out = fmt::format("{}  # written by `mneme paper run`, never by hand\nverdict = {}\n",
                         kHeader, toml_text(std::string(name(result.verdict))));
  out += "criteria = [\n";
  for (const auto& [name, value, bound, met] : result.criteria) {
    out += fmt::format("  {{ name = {}, value = {}, bound = {}, met = {} }},\n", toml_text(name),
                       value, bound, met);
  }
  out += "]\n";
  out += fmt::format("claim_digest = {}\ncommand_digest = {}\nseed = {}\ncommit = {}\ndirty = {}\n",
                     toml_text(result.claim_digest), toml_text(result.command_digest), result.seed,
                     toml_text(result.commit), result.dirty);
  out +=
      fmt::format("machine = {}\ntorch = {}\nseconds = {:.1f}\ndate = {}\n",
                  toml_text(result.machine), toml_text(result.torch), result.seconds, result.date);
  return out;
}

/// A word of a command that names a file beside the card, or nothing.
std::optional<fs::path> file_beside(const Card& card, const std::string& word) {
  if (word.empty() || word.front() == '-' || fs::path(word).is_absolute()) return std::nullopt;
  auto path = card.path.parent_path() / word;
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) return std::nullopt;
  return path;
}

Json as_json(const Criterion& criterion) {
  return {{"name", criterion.name},
          {"metric", criterion.metric},
          {criterion.at_most ? "at_most" : "at_least", criterion.number},
          {"times", criterion.times ? Json(*criterion.times) : Json()},
          {"plus", criterion.plus}};
}

}  // namespace

Card read_card(const fs::path& path) { return read(path, Result::checked); }
Card read_card_to_run(const fs::path& path) { return read(path, Result::replaced); }

std::vector<fs::path> card_files(const fs::path& folder) {
  std::vector<fs::path> out;
  if (folder.empty()) {
    out = files_beside_program("papers", kEnding);
    if (out.empty()) {
      throw Error(Errc::not_found,
                  "there is no folder 'papers' with cards beside this program: name one with "
                  "--cards");
    }
    return out;
  }
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(folder, failed)) {
    if (entry.path().extension() == kEnding) out.push_back(entry.path());
  }
  if (failed)
    throw Error(Errc::not_found, fmt::format("--cards: {}: {}", folder.string(), failed.message()));
  if (out.empty()) {
    throw Error(Errc::not_found,
                fmt::format("--cards: there is no card (*.toml) in {}", folder.string()));
  }
  std::sort(out.begin(), out.end());
  return out;
}

fs::path find_card(const std::vector<fs::path>& files, std::string_view slug) {
  std::vector<std::string> slugs;
  for (const auto& file : files) {
    slugs.push_back(file.stem().string());
    if (slugs.back() == slug) return file;
  }
  const auto near = did_you_mean(slug, slugs);
  throw Error(Errc::not_found, fmt::format("no card '{}'{} `mneme paper list` lists all", slug,
                                           near.empty() ? ":" : near));
}

std::vector<std::string> resolved_command(const Card& card,
                                          const std::vector<std::string>& command) {
  auto out = command;
  for (auto& word : out) {
    if (const auto path = file_beside(card, word)) word = fs::absolute(*path).string();
  }
  return out;
}

std::string claim_digest(const Claim& claim) {
  auto criteria = Json::array();
  for (const auto& criterion : claim.criteria) criteria.push_back(as_json(criterion));
  return sha256_hex(Json{{"text", claim.text}, {"criteria", criteria}}.dump());
}

std::string command_digest(const Card& card) {
  Json content{{"command", card.claim.command}, {"files", Json::array()}};
  for (const auto& word : card.claim.command) {
    if (const auto path = file_beside(card, word)) content["files"].push_back(file_digest(*path));
  }
  return sha256_hex(content.dump());
}

bool stale(const Card& card) {
  return card.result && (card.result->claim_digest != claim_digest(card.claim) ||
                         card.result->command_digest != command_digest(card));
}

bool change_is_unexplained(const Card& card) {
  if (!card.result || card.result->claim_digest == claim_digest(card.claim)) return false;
  return std::none_of(card.changed.begin(), card.changed.end(),
                      [&](const auto& change) { return change.date >= card.result->date; });
}

std::string_view name(Verdict verdict) noexcept {
  return kVerdicts[static_cast<std::size_t>(verdict)];
}

std::string standing(const Card& card) {
  if (!card.result) return "pending";
  return stale(card) ? "stale" : std::string(name(card.result->verdict));
}

std::vector<Judged> judge(const std::vector<Criterion>& criteria, const Json& figures) {
  std::vector<Judged> out;
  for (const auto& criterion : criteria) {
    const double value = number_at(criterion, criterion.metric, figures);
    const double factor = criterion.times ? number_at(criterion, *criterion.times, figures) : 1;
    const double bound = criterion.number * factor + criterion.plus;
    if (!std::isfinite(bound)) {
      throw Error(Errc::invalid,
                  fmt::format("criterion '{}': its bound is no finite number", criterion.name));
    }
    out.push_back(
        {criterion.name, value, bound, criterion.at_most ? value <= bound : value >= bound});
  }
  return out;
}

Verdict verdict_of(const std::vector<Judged>& criteria) {
  const auto met =
      std::count_if(criteria.begin(), criteria.end(), [](const auto& c) { return c.met; });
  if (met == 0) return Verdict::not_shown;
  return met == static_cast<std::ptrdiff_t>(criteria.size()) ? Verdict::shown
                                                             : Verdict::partly_shown;
}

void check_result_can_be_written(const fs::path& path) {
  try {
    const AtomicFile probe(path);
  } catch (const Error& error) {
    throw Error(Errc::io, fmt::format("{}; to keep the result, copy the cards to a folder of your "
                                      "own and name it with --cards",
                                      error.what()));
  }
}

void write_result(const fs::path& path, const Measured& result) {
  auto text = file_text(path);
  const auto begin = result_begin(path, text, parse(path, text));
  if (begin < text.size()) {
    text.resize(begin);
  } else {
    text += text.ends_with('\n') ? "\n" : "\n\n";
  }
  text += result_text(result);
  (void)parse(path, text);
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

Json as_json(const Card& card) {
  Json out{{"slug", card.slug},       {"row", card.row ? Json(*card.row) : Json()},
           {"title", card.title},     {"authors", card.authors},
           {"year", card.year},       {"source", card.source},
           {"family", card.family},   {"components", card.components},
           {"reports", card.reports}, {"departs", card.departs},
           {"why_not", card.why_not}};
  Json claim{{"text", card.claim.text},
             {"command", card.claim.command},
             {"smoke", card.claim.smoke},
             {"criteria", Json::array()}};
  for (const auto& criterion : card.claim.criteria) claim["criteria"].push_back(as_json(criterion));
  out["claim"] = std::move(claim);
  out["changed"] = Json::array();
  for (const auto& [date, old, reason] : card.changed)
    out["changed"].push_back({{"date", date}, {"old", old}, {"reason", reason}});
  out["result"] = nullptr;
  if (const auto& result = card.result) {
    Json measured{{"verdict", name(result->verdict)}, {"criteria", Json::array()}};
    for (const auto& [name, value, bound, met] : result->criteria) {
      measured["criteria"].push_back(
          {{"name", name}, {"value", value}, {"bound", bound}, {"met", met}});
    }
    measured["claim_digest"] = result->claim_digest;
    measured["command_digest"] = result->command_digest;
    measured["seed"] = result->seed;
    measured["commit"] = result->commit;
    measured["dirty"] = result->dirty;
    measured["machine"] = result->machine;
    measured["torch"] = result->torch;
    measured["seconds"] = result->seconds;
    measured["date"] = result->date;
    out["result"] = std::move(measured);
  }
  out["standing"] = standing(card);
  out["stale"] = stale(card);
  return out;
}

}  // namespace mneme::cli
