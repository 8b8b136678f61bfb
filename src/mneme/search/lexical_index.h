// Lexical search: BM25 over the words of spans, through SQLite's FTS5.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

struct sqlite3;

namespace mneme {

/// A span that a question's words were found in.
struct LexicalHit {
  std::int64_t id = 0;
  double bm25 = 0;  ///< as FTS5 gives it: negative, the lower the better
};

/// A term of a text as the index knows it.
struct Term {
  std::string stem;  ///< folded and stemmed
  std::string word;  ///< as it stood first in the text; a query for it finds the stem
};

/// What FTS5 uses to make terms of a text.
inline constexpr std::string_view kTokenizer = "porter unicode61";

/// Reads an FTS5 table that belongs to somebody else (the memory file): its rowids are span ids,
/// and it was made with tokenize = 'porter unicode61'. Nothing is written and no schema is changed,
/// so the file may be read-only. The connection must outlive this, and is used from one thread at a
/// time. All members throw Error: `busy`, `corrupt`, `io` as SQLite says.
class LexicalIndex {
 public:
  /// `table` is a name of the main database. Throws `not_found` if there is no such FTS5 table and
  /// `unsupported` if this SQLite has no FTS5.
  LexicalIndex(sqlite3* db, std::string table);
  ~LexicalIndex();
  LexicalIndex(LexicalIndex&&) noexcept;
  LexicalIndex& operator=(LexicalIndex&&) noexcept;

  /// The spans that hold any of the question's words (see query_words), best BM25 first, equal ones
  /// by id. With `within` only those ids are looked at, as completely as without. In a table of
  /// kManySpans or more, words that more than half of the spans hold are not looked up unless there
  /// are no others: FTS5 gives them a weight of a millionth and takes most of the time for them.
  [[nodiscard]] std::vector<LexicalHit> search(
      std::string_view question, std::int64_t limit,
      const std::vector<std::int64_t>* within = nullptr) const;
  /// The distinct terms of a text, exactly as the table's tokenizer makes them, in order of first
  /// appearance.
  [[nodiscard]] std::vector<Term> split(std::string_view text) const;
  /// The stems of split().
  [[nodiscard]] std::set<std::string> terms(std::string_view text) const;
  /// The number of spans that hold a term.
  [[nodiscard]] std::int64_t document_frequency(const Term& term) const;
  /// For each id whether that span holds the term.
  [[nodiscard]] std::vector<bool> holds(const Term& term, std::span<const std::int64_t> ids) const;
  /// The number of spans in the table.
  [[nodiscard]] std::int64_t size() const;

 private:
  struct Body;
  std::unique_ptr<Body> body_;
};

namespace search {

/// The most distinct words of a question that are looked up; a question that long is a document.
inline constexpr std::size_t kMaxQueryWords = 1024;
/// From this many spans on, lexical search leaves out words that are nearly everywhere.
inline constexpr std::int64_t kManySpans = 4096;

/// The distinct words of a question, case apart: runs of letters, digits, marks and underscores in
/// any script, in order; the first kMaxQueryWords of them.
std::vector<std::string> query_words(std::string_view question);

/// An FTS5 expression that matches any of the words, each quoted so that nothing in it is an
/// operator.
std::string match_any(std::span<const std::string> words);

}  // namespace search
}  // namespace mneme
