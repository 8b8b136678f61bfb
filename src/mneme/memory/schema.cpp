#include "mneme/memory/schema.h"

#include "mneme/memory/sqlite.h"

#include <set>
#include <string>
#include <tuple>

namespace mneme::memory {
namespace {

// The columns of `reps` are those of the design, and `bytes`: the length of the representation.
// What the byte budget bounds (hidden, slots, kv, state, latent) has a NULL `blob` and lies in
// `state_parts`, so that counting a use does not rewrite megabytes and so that its pages can be
// counted. Digests and codecs are stored once and referred to. A NULL `provenance` means: the
// span's own document and nothing else.
//
// `documents.first_turn` and `last_turn` are the numbers of the turns of its session that a document
// holds, NULL for what is no part of a talk.
//
// `spans.parent` is the ordinal of the parent in the same document, or -1; sections are no leaves
// and not searched.
//
// `spans_fts` holds the words of the leaf spans, rowid = span id. It is contentless, because the
// text is stored compressed elsewhere; what must go is deleted by giving FTS5 the same text again.
constexpr const char* kTables = R"sql(
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE counters (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE sessions (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
  created_at INTEGER NOT NULL) STRICT;
CREATE TABLE turns (
  id INTEGER PRIMARY KEY AUTOINCREMENT, session_id INTEGER NOT NULL REFERENCES sessions(id),
  number INTEGER NOT NULL, role TEXT NOT NULL, text TEXT NOT NULL, ids BLOB, provenance TEXT,
  written_at INTEGER NOT NULL, UNIQUE (session_id, number)) STRICT;
CREATE TABLE documents (
  id INTEGER PRIMARY KEY AUTOINCREMENT, label TEXT NOT NULL UNIQUE, title TEXT NOT NULL,
  media TEXT NOT NULL, bytes INTEGER NOT NULL, content_hash TEXT NOT NULL,
  version INTEGER NOT NULL, created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL, session_id INTEGER REFERENCES sessions(id), provenance TEXT,
  first_turn INTEGER, last_turn INTEGER) STRICT;
CREATE INDEX documents_of_session ON documents (session_id) WHERE session_id IS NOT NULL;
CREATE TABLE texts (
  document_id INTEGER NOT NULL REFERENCES documents(id), part INTEGER NOT NULL,
  bytes INTEGER NOT NULL, zstd BLOB NOT NULL, PRIMARY KEY (document_id, part)) STRICT;
CREATE TABLE spans (
  id INTEGER PRIMARY KEY AUTOINCREMENT, document_id INTEGER NOT NULL REFERENCES documents(id),
  begin INTEGER NOT NULL, end INTEGER NOT NULL, parent INTEGER NOT NULL, ordinal INTEGER NOT NULL,
  tokens INTEGER NOT NULL, kind TEXT NOT NULL, leaf INTEGER NOT NULL, asked INTEGER NOT NULL,
  asked_at INTEGER NOT NULL, consolidation INTEGER NOT NULL, UNIQUE (document_id, ordinal)) STRICT;
CREATE INDEX spans_consolidated ON spans (consolidation) WHERE consolidation > 0;
CREATE TABLE digests (id INTEGER PRIMARY KEY, value TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE codecs (id INTEGER PRIMARY KEY, spec TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE reps (
  id INTEGER PRIMARY KEY AUTOINCREMENT, span_id INTEGER NOT NULL REFERENCES spans(id),
  kind TEXT NOT NULL, model_digest INTEGER NOT NULL REFERENCES digests(id),
  layer INTEGER NOT NULL, codec INTEGER NOT NULL REFERENCES codecs(id),
  prefix_digest INTEGER NOT NULL REFERENCES digests(id), n_vec INTEGER NOT NULL,
  d INTEGER NOT NULL, blob BLOB, bytes INTEGER NOT NULL, crc32c INTEGER NOT NULL,
  provenance TEXT, uses INTEGER NOT NULL, written_at INTEGER NOT NULL,
  UNIQUE (span_id, kind, model_digest, prefix_digest, layer, codec)) STRICT;
CREATE INDEX reps_by_kind ON reps (kind, model_digest, span_id);
CREATE INDEX reps_states ON reps (span_id, bytes) WHERE blob IS NULL;
CREATE INDEX reps_provenance ON reps (provenance) WHERE provenance IS NOT NULL;
CREATE TABLE state_parts (
  id INTEGER PRIMARY KEY, rep_id INTEGER NOT NULL REFERENCES reps(id), part INTEGER NOT NULL,
  data BLOB NOT NULL, UNIQUE (rep_id, part)) STRICT;
CREATE TABLE indexes (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, spec TEXT NOT NULL,
  model_digest INTEGER NOT NULL REFERENCES digests(id), generation INTEGER NOT NULL,
  bytes INTEGER NOT NULL, crc32c INTEGER NOT NULL, written_at INTEGER NOT NULL) STRICT;
CREATE TABLE index_parts (
  id INTEGER PRIMARY KEY, index_id INTEGER NOT NULL REFERENCES indexes(id), part INTEGER NOT NULL,
  data BLOB NOT NULL, UNIQUE (index_id, part)) STRICT;
CREATE VIRTUAL TABLE spans_fts USING fts5(text, content='', tokenize='porter unicode61');
)sql";

using SchemaRow = std::tuple<std::string, std::string, std::string, std::string>;

// The SQL of a table with each run of white space as one space: laying our text out otherwise is no
// other schema.
std::string without_layout(std::string_view sql) {
  std::string out;
  for (const char c : sql) {
    const bool space = c == ' ' || c == '\n';
    if (!space || (!out.empty() && out.back() != ' ')) out += space ? ' ' : c;
  }
  return out;
}

std::multiset<SchemaRow> schema_rows(Database& database) {
  std::multiset<SchemaRow> rows;
  auto read = database.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema LIMIT 256");
  while (read.step()) {
    rows.emplace(std::string(read.text(0)), std::string(read.text(1)), std::string(read.text(2)),
                 without_layout(read.text(3)));
  }
  return rows;
}

const std::multiset<SchemaRow>& our_schema_rows() {
  static const std::multiset<SchemaRow> rows = [] {
    Database model;
    model.execute(kTables);
    return schema_rows(model);
  }();
  return rows;
}

}  // namespace

void create_schema(Database& database) {
  database.execute("PRAGMA page_size = " + std::to_string(kPageBytes));
  database.execute("PRAGMA encoding = 'UTF-8'");
  // Begun as a reading one: the mode of vacuuming has to be set before anything else is written,
  // and setting it writes.
  Transaction transaction(database, Transaction::Kind::read);
  database.execute("PRAGMA auto_vacuum = INCREMENTAL");
  if (database.integer("SELECT count(*) FROM sqlite_schema") != 0) return;
  database.execute(kTables);
  // The table of states' parts and its index have a page each before they hold anything.
  database.execute("INSERT INTO counters (key, value) VALUES ('state_pages', 2)");
  database.execute("PRAGMA application_id = " + std::to_string(kApplicationId));
  database.execute("PRAGMA user_version = " + std::to_string(kFormat));
  transaction.commit();
}

void check_schema(Database& database) {
  Transaction snapshot(database, Transaction::Kind::read);
  const std::string where = database.path().string() + ": ";
  if (database.integer("PRAGMA application_id") != kApplicationId) {
    throw Error(Errc::corrupt, where + "not a mneme memory file, but another SQLite database");
  }
  const auto format = database.integer("PRAGMA user_version");
  if (format > kFormat) {
    throw Error(Errc::mismatch, where + "written in format " + std::to_string(format) +
                                    ", this mneme knows format " + std::to_string(kFormat) +
                                    "; use a newer mneme");
  }
  if (format < 1) {
    throw Error(Errc::corrupt,
                where + "says format " + std::to_string(format) + ", which no mneme wrote");
  }
  if (format < kFormat) {
    throw Error(Errc::mismatch, where + "written in the older format " + std::to_string(format) +
                                    "; run `mneme upgrade` on it first");
  }
  if (schema_rows(database) != our_schema_rows()) {
    throw Error(Errc::corrupt, where + "its tables are not those of a mneme memory of format " +
                                   std::to_string(kFormat) +
                                   "; it was changed by another program, restore a copy");
  }
}

}  // namespace mneme::memory
