#include "mneme/search/lexical_index.h"

#include "mneme/core/error.h"
#include "mneme/text/unicode.h"

#include <algorithm>
#include <fmt/format.h>
#include <sqlite3.h>
#include <unicode/uchar.h>
#include <unordered_map>
#include <unordered_set>
#include <utility>

namespace mneme {
namespace {

[[noreturn]] void fail(sqlite3* db, std::string_view doing) {
  Errc code = Errc::invalid;
  switch (sqlite3_errcode(db)) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      code = Errc::busy;
      break;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      code = Errc::corrupt;
      break;
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
      code = Errc::io;
      break;
    case SQLITE_FULL:
      code = Errc::full;
      break;
    default:
      break;
  }
  throw Error(code, fmt::format("{}: {}", doing, sqlite3_errmsg(db)));
}

// A prepared statement; parameters are bound in order.
class Statement {
 public:
  Statement(sqlite3* db, const std::string& sql) : db_(db) {
    if (sqlite3_prepare_v2(db, sql.c_str(), static_cast<int>(sql.size()) + 1, &statement_,
                           nullptr) != SQLITE_OK) {
      fail(db, "lexical index");
    }
  }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;
  ~Statement() { sqlite3_finalize(statement_); }

  Statement& bind(std::string_view text) {
    if (sqlite3_bind_text64(statement_, ++bound_, text.data(), text.size(), SQLITE_TRANSIENT,
                            SQLITE_UTF8) != SQLITE_OK) {
      fail(db_, "lexical index");
    }
    return *this;
  }
  Statement& bind(std::int64_t value) {
    if (sqlite3_bind_int64(statement_, ++bound_, value) != SQLITE_OK) fail(db_, "lexical index");
    return *this;
  }
  bool step() {
    const int rc = sqlite3_step(statement_);
    if (rc == SQLITE_ROW) return true;
    if (rc != SQLITE_DONE) fail(db_, "lexical index");
    return false;
  }
  [[nodiscard]] std::int64_t integer(int column) const {
    return sqlite3_column_int64(statement_, column);
  }
  [[nodiscard]] double real(int column) const { return sqlite3_column_double(statement_, column); }
  [[nodiscard]] sqlite3_stmt* get() const noexcept { return statement_; }

 private:
  sqlite3* db_;
  sqlite3_stmt* statement_ = nullptr;
  int bound_ = 0;
};

// FTS5's functions for extensions, handed out through a bound pointer.
fts5_api* fts5_of(sqlite3* db) {
  fts5_api* api = nullptr;
  Statement ask(db, "SELECT fts5(?1)");
  sqlite3_bind_pointer(ask.get(), 1, static_cast<void*>(&api), "fts5_api_ptr", nullptr);
  ask.step();
  if (api == nullptr) throw Error(Errc::unsupported, "this SQLite was built without FTS5");
  return api;
}

std::string quoted(std::string_view text, char mark) {
  std::string out(1, mark);
  for (const char c : text) {
    out += c;
    if (c == mark) out += mark;
  }
  return out += mark;
}

std::string as_json(std::span<const std::int64_t> ids) {
  return fmt::format("[{}]", fmt::join(ids, ","));
}

bool in_word(UChar32 c) {
  return c == '_' || u_isalnum(c) || (U_GET_GC_MASK(c) & (U_GC_M_MASK | U_GC_N_MASK)) != 0;
}

}  // namespace

struct LexicalIndex::Body {
  sqlite3* db = nullptr;
  std::string table;  // quoted
  std::string count;  // the statement that counts spans
  fts5_tokenizer tokenizer{};
  Fts5Tokenizer* instance = nullptr;

  /// The number of spans that hold a word.
  [[nodiscard]] std::int64_t count_matches(std::string_view word) const {
    Statement matches(
        db, fmt::format("SELECT count(*) FROM {} WHERE {} MATCH ?1", table, table.substr(5)));
    matches.bind(quoted(word, '"')).step();
    return matches.integer(0);
  }

  Body() = default;
  Body(const Body&) = delete;
  Body& operator=(const Body&) = delete;
  ~Body() {
    if (instance != nullptr) tokenizer.xDelete(instance);
  }
};

LexicalIndex::LexicalIndex(sqlite3* db, std::string table) : body_(std::make_unique<Body>()) {
  auto& b = *body_;
  b.db = db;
  b.table = "main." + quoted(table, '"');
  auto* api = fts5_of(db);
  void* context = nullptr;
  const char* base[] = {"unicode61"};
  if (api->xFindTokenizer(api, "porter", &context, &b.tokenizer) != SQLITE_OK ||
      b.tokenizer.xCreate(context, base, 1, &b.instance) != SQLITE_OK) {
    throw Error(Errc::unsupported, fmt::format("this SQLite has no tokenizer '{}'", kTokenizer));
  }
  Statement find(
      db, "SELECT count(*) FROM main.sqlite_schema WHERE name = ?1 AND sql LIKE '%using%fts5%'");
  if (find.bind(table).step(); find.integer(0) == 0) {
    throw Error(Errc::not_found, fmt::format("there is no FTS5 table '{}'", table));
  }
  // One small row a span; counting the table itself would read all of its text.
  b.count = fmt::format("SELECT count(*) FROM main.{}", quoted(table + "_docsize", '"'));
  Statement find_sizes(db, "SELECT count(*) FROM main.sqlite_schema WHERE name = ?1");
  if (find_sizes.bind(table + "_docsize").step(); find_sizes.integer(0) == 0)
    b.count = "SELECT count(*) FROM " + b.table;
}

LexicalIndex::~LexicalIndex() = default;
LexicalIndex::LexicalIndex(LexicalIndex&&) noexcept = default;
LexicalIndex& LexicalIndex::operator=(LexicalIndex&&) noexcept = default;

std::vector<LexicalHit> LexicalIndex::search(std::string_view question, std::int64_t limit,
                                             const std::vector<std::int64_t>* within) const {
  const auto& b = *body_;
  std::vector<LexicalHit> out;
  auto words = search::query_words(question);
  if (words.empty() || limit <= 0) return out;
  if (const auto n = size(); n >= search::kManySpans) {
    std::vector<std::string> telling;
    for (const auto& word : words) {
      if (2 * b.count_matches(word) <= n) telling.push_back(word);
    }
    if (!telling.empty()) words = std::move(telling);
  }
  // A unary + keeps the ids out of FTS5's plan, which would run the whole query once for each of
  // them.
  const std::string sql = fmt::format(
      "SELECT rowid, bm25({0}) AS score FROM {1} WHERE {0} MATCH ?1 {2} ORDER BY score, rowid "
      "LIMIT {3}",
      b.table.substr(5), b.table,
      within != nullptr ? "AND +rowid IN (SELECT value FROM json_each(?3))" : "", "?2");
  Statement find(b.db, sql);
  find.bind(search::match_any(words)).bind(limit);
  if (within != nullptr) find.bind(as_json(*within));
  while (find.step()) out.push_back({find.integer(0), find.real(1)});
  return out;
}

std::vector<Term> LexicalIndex::split(std::string_view text) const {
  struct Collected {
    std::string_view text;
    std::vector<Term> terms;
    std::unordered_set<std::string> seen;
  } collected{text, {}, {}};
  const auto each = [](void* context, int, const char* token, int bytes, int begin,
                       int end) noexcept {
    auto& into = *static_cast<Collected*>(context);
    std::string stem(token, static_cast<std::size_t>(bytes));
    if (!into.seen.insert(stem).second) return SQLITE_OK;
    into.terms.push_back(
        {std::move(stem), std::string(into.text.substr(static_cast<std::size_t>(begin),
                                                       static_cast<std::size_t>(end - begin)))});
    return SQLITE_OK;
  };
  if (text.size() > 0x7FFFFFFFU)
    throw Error(Errc::invalid, "a text of more than 2 GiB has too many terms");
  const auto& b = *body_;
  const int rc = b.tokenizer.xTokenize(b.instance, &collected, FTS5_TOKENIZE_DOCUMENT, text.data(),
                                       static_cast<int>(text.size()), each);
  if (rc != SQLITE_OK)
    throw Error(Errc::io, fmt::format("FTS5's tokenizer failed: {}", sqlite3_errstr(rc)));
  return std::move(collected.terms);
}

std::set<std::string> LexicalIndex::terms(std::string_view text) const {
  std::set<std::string> out;
  for (auto& term : split(text)) out.insert(std::move(term.stem));
  return out;
}

std::int64_t LexicalIndex::document_frequency(const Term& term) const {
  return body_->count_matches(term.word);
}

std::vector<bool> LexicalIndex::holds(const Term& term, std::span<const std::int64_t> ids) const {
  const auto& b = *body_;
  std::unordered_set<std::int64_t> found;
  Statement find(
      b.db,
      fmt::format(
          "SELECT rowid FROM {} WHERE {} MATCH ?1 AND rowid IN (SELECT value FROM json_each(?2))",
          b.table, b.table.substr(5)));
  find.bind(quoted(term.word, '"')).bind(as_json(ids));
  while (find.step()) found.insert(find.integer(0));
  std::vector<bool> out;
  out.reserve(ids.size());
  for (const auto id : ids) out.push_back(found.contains(id));
  return out;
}

std::int64_t LexicalIndex::size() const {
  Statement count(body_->db, body_->count);
  count.step();
  return count.integer(0);
}

namespace search {

std::vector<std::string> query_words(std::string_view question) {
  std::vector<std::string> out;
  std::unordered_set<std::string> seen;
  std::string word, folded;
  const auto add = [&] {
    if (word.empty()) return;
    if (seen.size() < kMaxQueryWords && seen.insert(folded).second) out.push_back(word);
    word.clear();
    folded.clear();
  };
  for (std::size_t at = 0; at < question.size();) {
    const auto step = text::next_code_point(question, at);
    const auto c = static_cast<UChar32>(step.code_point);
    if (step.valid && in_word(c)) {
      word.append(question.substr(at, step.bytes));
      text::append_utf8(static_cast<char32_t>(u_tolower(c)), folded);
    } else {
      add();
    }
    at += step.bytes;
  }
  add();
  return out;
}

std::string match_any(std::span<const std::string> words) {
  std::string out;
  for (const auto& word : words) {
    if (!out.empty()) out += " OR ";
    out += quoted(word, '"');
  }
  return out;
}

}  // namespace search
}  // namespace mneme
