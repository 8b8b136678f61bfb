// Documents and spans: texts in compressed parts, the words of passages in FTS5.
#include "mneme/memory/clock.h"
#include "mneme/memory/memory_file.h"
#include "mneme/memory/provenance.h"
#include "mneme/memory/schema.h"
#include "mneme/memory/sqlite.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <zstd.h>

namespace mneme {

using memory::Transaction;

namespace {

constexpr int kTextLevel = 6;
constexpr std::size_t kMaxTitleBytes = 64 << 10;
constexpr std::size_t kMaxKindBytes = 64;
constexpr std::string_view kSection = "section";

// Compresses with a checksum in the frame, so that a flipped bit is found when the text is
// unpacked.
class TextCompressor {
 public:
  TextCompressor() : context_(ZSTD_createCCtx(), ZSTD_freeCCtx) {
    if (!context_) throw std::bad_alloc();
    ZSTD_CCtx_setParameter(context_.get(), ZSTD_c_compressionLevel, kTextLevel);
    ZSTD_CCtx_setParameter(context_.get(), ZSTD_c_checksumFlag, 1);
  }
  std::string_view compress(std::string_view text) {
    packed_.resize(ZSTD_compressBound(text.size()));
    const auto n =
        ZSTD_compress2(context_.get(), packed_.data(), packed_.size(), text.data(), text.size());
    if (ZSTD_isError(n) != 0)
      throw std::bad_alloc();  // the bound holds, so only memory can be missing
    return std::string_view(packed_).substr(0, n);
  }

 private:
  std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context_;
  std::string packed_;
};

bool character_border(std::string_view text, std::int64_t at) {
  return at == static_cast<std::int64_t>(text.size()) ||
         (static_cast<unsigned char>(text[static_cast<std::size_t>(at)]) & 0xC0) != 0x80;
}

// Spans as the caller gives them against the text that they cut.
void check_spans(const Document& document, std::span<const Span> spans) {
  const auto size = static_cast<std::int64_t>(document.text.size());
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const auto& s = spans[i];
    const auto refuse = [&](const std::string& why) {
      throw Error(Errc::invalid, document.label + ": span " + std::to_string(i) + " [" +
                                     std::to_string(s.begin) + ", " + std::to_string(s.end) + ") " +
                                     why);
    };
    if (s.begin < 0 || s.end < s.begin || s.end > size)
      refuse("is outside a text of " + std::to_string(size) + " bytes");
    if (!character_border(document.text, s.begin) || !character_border(document.text, s.end)) {
      refuse("begins or ends inside a character");
    }
    if (s.order != static_cast<std::int64_t>(i))
      refuse("has order " + std::to_string(s.order) + ", expected its index");
    if (s.parent < -1 || s.parent >= static_cast<std::int64_t>(i))
      refuse("has no earlier span " + std::to_string(s.parent) + " as parent");
    if (s.parent >= 0) {
      const auto& parent = spans[static_cast<std::size_t>(s.parent)];
      if (parent.begin > s.begin || parent.end < s.end) refuse("is not within its parent");
    }
    if (s.tokens < 0) refuse("has a negative number of tokens");
    if (s.kind.empty() || s.kind.size() > kMaxKindBytes)
      refuse("has no kind, or one longer than 64 bytes");
  }
}

Span read_span(memory::Statement& row) {
  Span s;
  s.id = row.integer(0);
  s.document = row.integer(1);
  s.begin = row.integer(2);
  s.end = row.integer(3);
  s.parent = row.integer(4);
  s.order = row.integer(5);
  s.tokens = row.integer(6);
  s.kind = std::string(row.text(7));
  return s;
}

}  // namespace

void MemoryFile::check_provenance(std::span<const std::int64_t> documents) const {
  auto row = db_->prepare("SELECT 1 FROM documents WHERE id = ?");
  for (const auto document : documents) {
    if (!row.bind(document).step()) {
      throw Error(
          Errc::not_found,
          path_.string() + ": a source of what was to be stored has been forgotten meanwhile");
    }
  }
}

PutResult MemoryFile::put_document(const Document& document, std::span<const Span> spans,
                                   std::span<const Rep> reps) {
  return put_document(document, spans, reps, PutOptions{});
}

void MemoryFile::check_document(const Document& document, std::span<const Span> spans,
                                std::span<const Rep> reps, const PutOptions& options) {
  if (static_cast<std::int64_t>(document.text.size()) > kMaxDocumentBytes) {
    throw Error(Errc::full, document.label + ": holds more than " +
                                std::to_string(kMaxDocumentBytes >> 30) +
                                " GiB, the most that one document may; split it");
  }
  const std::string labels[] = {document.label};
  check_labels(labels);
  if (document.title.size() > kMaxTitleBytes)
    throw Error(Errc::invalid, document.label + ": its title is longer than 64 KiB");
  if (document.content_hash.size() != 64) {
    throw Error(Errc::invalid, document.label + ": has no content hash of 64 hex digits");
  }
  check_spans(document, spans);
  const bool holds_turns = options.first_turn != 0 || options.last_turn != 0;
  if (holds_turns && (options.session.empty() || options.first_turn < 1 ||
                      options.last_turn < options.first_turn)) {
    throw Error(Errc::invalid, document.label + ": holds turns " +
                                   std::to_string(options.first_turn) + " to " +
                                   std::to_string(options.last_turn) + " of session \"" +
                                   options.session + "\", which cannot be");
  }
  for (const auto& rep : reps) {
    if (is_state(rep.key.kind)) {
      throw Error(
          Errc::invalid,
          document.label +
              ": a state cannot be stored with its document; put it afterwards, within the budget");
    }
    if (rep.key.span < 0 || rep.key.span >= static_cast<std::int64_t>(spans.size())) {
      throw Error(Errc::invalid, document.label + ": a representation belongs to span " +
                                     std::to_string(rep.key.span) + " of " +
                                     std::to_string(spans.size()));
    }
  }
}

PutResult MemoryFile::put_document(const Document& document, std::span<const Span> spans,
                                   std::span<const Rep> reps, const PutOptions& options) {
  check_document(document, spans, reps, options);
  begin_writing(true);
  Transaction transaction(*db_, Transaction::Kind::write);
  auto result = write_document(document, spans, reps, options);
  if (result.outcome == PutResult::Outcome::unchanged) return result;
  transaction.commit();
  checkpoint();
  return result;
}

// Stores a document that check_document took; part of the caller's transaction.
PutResult MemoryFile::write_document(const Document& document, std::span<const Span> spans,
                                     std::span<const Rep> reps, const PutOptions& options) {
  check_provenance(options.provenance);
  PutResult result;
  const auto now = memory::unix_seconds();
  {
    auto old =
        db_->prepare("SELECT id, content_hash, version, session_id FROM documents WHERE label = ?");
    if (old.bind(document.label).step()) {
      result.document = old.integer(0);
      if (old.text(1) == document.content_hash) {
        result.outcome = PutResult::Outcome::unchanged;
        auto row = db_->prepare("SELECT id FROM spans WHERE document_id = ? ORDER BY ordinal");
        row.bind(result.document);
        while (row.step()) result.spans.push_back(row.integer(0));
        return result;
      }
      result.outcome = PutResult::Outcome::replaced;
    }
  }
  std::optional<std::int64_t> session;
  if (!options.session.empty()) session = session_id(options.session, true);
  const auto provenance = memory::write_provenance(options.provenance);
  std::int64_t old_spans = 0;
  if (result.outcome == PutResult::Outcome::replaced) {
    ForgetReport deleted;
    delete_content(result.document, true, deleted);
    old_spans = deleted.spans;
    db_->prepare(
           "UPDATE documents SET title = ?, media = ?, bytes = ?, content_hash = ?, version = "
           "version + 1, "
           "updated_at = ?, session_id = ?, provenance = ?, first_turn = NULL, last_turn = NULL "
           "WHERE id = ?")
        .bind(document.title, media_name(document.media), document.text.size(),
              document.content_hash, now, session, provenance, result.document)
        .run();
  } else {
    db_->prepare(
           "INSERT INTO documents (label, title, media, bytes, content_hash, version, created_at, "
           "updated_at, "
           "session_id, provenance) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(document.label, document.title, media_name(document.media), document.text.size(),
              document.content_hash, std::max<std::int64_t>(1, document.version),
              document.created_at_s > 0 ? document.created_at_s : now, now, session, provenance)
        .run();
    result.document = db_->last_row();
  }
  if (options.first_turn != 0)
    record_turns(result.document, *session, options.first_turn, options.last_turn);
  write_content(result.document, document, spans, reps, result);
  // FTS5 keeps deleted words beside a mark until it merges; a large part of them is merged away at
  // once.
  if (4 * old_spans > db_->integer("SELECT count(*) FROM spans")) {
    db_->prepare("INSERT INTO spans_fts (spans_fts) VALUES ('optimize')").run();
  }
  bump_generation();
  release_free_pages();
  unpacked_ = {};
  return result;
}

void MemoryFile::write_content(std::int64_t document, const Document& content,
                               std::span<const Span> spans, std::span<const Rep> reps,
                               PutResult& result) {
  const std::string_view text = content.text;
  {
    TextCompressor compressor;
    auto insert =
        db_->prepare("INSERT INTO texts (document_id, part, bytes, zstd) VALUES (?, ?, ?, ?)");
    std::int64_t part = 0;
    for (std::size_t at = 0; at < text.size(); at += memory::kTextPartBytes, ++part) {
      const auto piece = text.substr(at, memory::kTextPartBytes);
      insert.bind(document, part, piece.size(), memory::bytes_of(compressor.compress(piece))).run();
    }
  }
  auto insert = db_->prepare(
      "INSERT INTO spans (document_id, begin, end, parent, ordinal, tokens, kind, leaf, asked, "
      "asked_at, consolidation) "
      "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0)");
  auto words = db_->prepare("INSERT INTO spans_fts (rowid, text) VALUES (?, ?)");
  result.spans.reserve(spans.size());
  for (const auto& s : spans) {
    const bool leaf = s.kind != kSection;
    insert.bind(document, s.begin, s.end, s.parent, s.order, s.tokens, s.kind, leaf).run();
    const auto id = db_->last_row();
    result.spans.push_back(id);
    if (!leaf) continue;
    words
        .bind(id, text.substr(static_cast<std::size_t>(s.begin),
                              static_cast<std::size_t>(s.end - s.begin)))
        .run();
  }
  for (const auto& rep : reps) write_rep(result.spans[static_cast<std::size_t>(rep.key.span)], rep);
}

void MemoryFile::delete_content(std::int64_t document, bool from_fts, ForgetReport& report) {
  if (from_fts) {
    auto words =
        db_->prepare("INSERT INTO spans_fts (spans_fts, rowid, text) VALUES ('delete', ?, ?)");
    for (const auto& s : spans(document)) {
      if (s.kind == kSection) continue;
      const auto text = document_text(document, s.begin, s.end);
      words.bind(s.id, text).run();
    }
  }
  // Its own representations, and those of other documents that had it in their context.
  std::vector<std::int64_t> reps;
  {
    auto own = db_->prepare(
        "SELECT r.id FROM spans s JOIN reps r ON r.span_id = s.id WHERE s.document_id = ?");
    own.bind(document);
    while (own.step()) reps.push_back(own.integer(0));
    auto others = db_->prepare(
        "SELECT id FROM reps WHERE provenance IS NOT NULL AND instr(provenance, ?) > 0");
    const auto needle = memory::provenance_needle(document);
    others.bind(needle);
    while (others.step()) reps.push_back(others.integer(0));
  }
  std::sort(reps.begin(), reps.end());
  reps.erase(std::unique(reps.begin(), reps.end()), reps.end());
  for (const auto rep : reps) delete_rep(rep);
  report.reps += static_cast<std::int64_t>(reps.size());
  report.spans += db_->integer("SELECT count(*) FROM spans WHERE leaf AND document_id = " +
                               std::to_string(document));
  db_->prepare("DELETE FROM spans WHERE document_id = ?").bind(document).run();
  db_->prepare("DELETE FROM texts WHERE document_id = ?").bind(document).run();
  db_->prepare("DELETE FROM index_parts").run();
  db_->prepare("DELETE FROM indexes").run();
}

std::vector<DocumentInfo> MemoryFile::list_documents(std::optional<std::string_view> label) const {
  Transaction snapshot(*db_, Transaction::Kind::read);
  std::string sql =
      "SELECT d.id, d.label, d.title, d.media, d.bytes, d.content_hash, d.version, d.created_at, "
      "d.updated_at, "
      "coalesce(n.name, ''), coalesce(d.provenance, ''), "
      "(SELECT count(*) FROM spans s WHERE s.document_id = d.id AND s.leaf), "
      "(SELECT coalesce(sum(s.tokens), 0) FROM spans s WHERE s.document_id = d.id AND s.leaf), "
      "(SELECT count(*) FROM spans s WHERE s.document_id = d.id AND s.leaf AND EXISTS "
      " (SELECT 1 FROM reps r WHERE r.span_id = s.id AND r.blob IS NULL)), "
      "coalesce(d.first_turn, 0), coalesce(d.last_turn, 0) "
      "FROM documents d LEFT JOIN sessions n ON n.id = d.session_id ";
  sql += label ? "WHERE d.label = ?" : "ORDER BY d.session_id IS NOT NULL, d.id";
  auto row = db_->prepare(sql);
  if (label) row.bind(*label);
  std::vector<DocumentInfo> found;
  while (row.step()) {
    DocumentInfo info;
    info.document.id = row.integer(0);
    info.document.label = std::string(row.text(1));
    info.document.title = std::string(row.text(2));
    for (const auto media : {Media::text, Media::code, Media::image, Media::clip}) {
      if (media_name(media) == row.text(3)) info.document.media = media;
    }
    info.bytes = row.integer(4);
    info.document.content_hash = std::string(row.text(5));
    info.document.version = row.integer(6);
    info.document.created_at_s = row.integer(7);
    info.document.updated_at_s = row.integer(8);
    info.session = std::string(row.text(9));
    info.provenance = memory::read_provenance(row.text(10));
    info.spans = row.integer(11);
    info.tokens = row.integer(12);
    info.with_states = row.integer(13);
    info.first_turn = row.integer(14);
    info.last_turn = row.integer(15);
    found.push_back(std::move(info));
  }
  return found;
}

std::vector<DocumentInfo> MemoryFile::documents() const { return list_documents(std::nullopt); }

std::optional<DocumentInfo> MemoryFile::find_document(std::string_view label) const {
  auto found = list_documents(label);
  if (found.empty()) return std::nullopt;
  return std::move(found.front());
}

std::string MemoryFile::read_text_part(std::int64_t document, std::int64_t part,
                                       std::int64_t bytes) const {
  auto row = db_->prepare("SELECT bytes, zstd FROM texts WHERE document_id = ? AND part = ?");
  const auto damaged = [&](const char* why) {
    return Error(Errc::corrupt, path_.string() + ": part " + std::to_string(part) +
                                    " of document " + std::to_string(document) + " " + why +
                                    "; run `mneme verify`");
  };
  if (!row.bind(document, part).step()) throw damaged("is missing");
  if (row.integer(0) != bytes) throw damaged("has another length than its place in the text says");
  const auto packed = row.blob(1);
  std::string text(static_cast<std::size_t>(bytes), '\0');
  const auto n = ZSTD_decompress(text.data(), text.size(), packed.data(), packed.size());
  if (ZSTD_isError(n) != 0 || n != text.size()) throw damaged("cannot be unpacked");
  return text;
}

std::int64_t MemoryFile::text_bytes(std::int64_t document) const {
  auto row = db_->prepare("SELECT bytes FROM documents WHERE id = ?");
  if (!row.bind(document).step()) {
    throw Error(Errc::not_found,
                path_.string() + ": there is no document with number " + std::to_string(document));
  }
  const auto size = row.integer(0);
  if (size < 0 || size > kMaxDocumentBytes) {
    throw Error(Errc::corrupt, path_.string() + ": document " + std::to_string(document) +
                                   " claims " + std::to_string(size) +
                                   " bytes; run `mneme verify`");
  }
  return size;
}

std::string MemoryFile::document_text(std::int64_t document) const {
  Transaction snapshot(*db_, Transaction::Kind::read);
  return document_text(document, 0, text_bytes(document));
}

std::string MemoryFile::document_text(std::int64_t document, std::int64_t begin,
                                      std::int64_t end) const {
  Transaction snapshot(*db_, Transaction::Kind::read);
  const auto size = text_bytes(document);
  if (begin < 0 || begin > end || end > size) {
    throw Error(Errc::invalid, path_.string() + ": bytes [" + std::to_string(begin) + ", " +
                                   std::to_string(end) + ") are outside document " +
                                   std::to_string(document) + " of " + std::to_string(size) +
                                   " bytes");
  }
  const auto now = generation();
  std::string text;
  while (begin < end) {
    const auto part = begin / memory::kTextPartBytes, start = part * memory::kTextPartBytes;
    if (unpacked_.document != document || unpacked_.part != part || unpacked_.generation != now) {
      unpacked_ = {};
      unpacked_.text =
          read_text_part(document, part, std::min(memory::kTextPartBytes, size - start));
      unpacked_.document = document;
      unpacked_.part = part;
      unpacked_.generation = now;
    }
    const auto stop = std::min(end, start + memory::kTextPartBytes);
    text.append(unpacked_.text, static_cast<std::size_t>(begin - start),
                static_cast<std::size_t>(stop - begin));
    begin = stop;
  }
  return text;
}

std::vector<Span> MemoryFile::spans(std::int64_t document) const {
  auto row = db_->prepare(
      "SELECT id, document_id, begin, end, parent, ordinal, tokens, kind FROM spans "
      "WHERE document_id = ? ORDER BY ordinal");
  row.bind(document);
  std::vector<Span> found;
  while (row.step()) found.push_back(read_span(row));
  return found;
}

std::optional<Span> MemoryFile::find_span(std::int64_t span) const {
  auto row = db_->prepare(
      "SELECT id, document_id, begin, end, parent, ordinal, tokens, kind FROM spans WHERE id = ?");
  if (!row.bind(span).step()) return std::nullopt;
  return read_span(row);
}

std::string MemoryFile::span_text(std::int64_t span) const {
  Transaction snapshot(*db_, Transaction::Kind::read);
  const auto found = find_span(span);
  if (!found)
    throw Error(Errc::not_found,
                path_.string() + ": there is no span with number " + std::to_string(span));
  return document_text(found->document, found->begin, found->end);
}

void MemoryFile::for_each_passage(const std::function<void(const Span&)>& each,
                                  bool session_too) const {
  auto row = db_->prepare(
      "SELECT s.id, s.document_id, s.begin, s.end, s.parent, s.ordinal, s.tokens, s.kind FROM "
      "spans s "
      "JOIN documents d ON d.id = s.document_id "
      "WHERE s.leaf AND (? OR d.session_id IS NULL) ORDER BY s.id");
  row.bind(session_too);
  while (row.step()) each(read_span(row));
}

std::vector<Span> MemoryFile::passages_without(std::int64_t document, RepKind kind,
                                               std::string_view model_digest) const {
  auto row = db_->prepare(
      "SELECT s.id, s.document_id, s.begin, s.end, s.parent, s.ordinal, s.tokens, s.kind FROM "
      "spans s WHERE s.document_id = ? AND s.leaf AND NOT EXISTS (SELECT 1 FROM reps r JOIN "
      "digests m "
      "ON m.id = r.model_digest WHERE r.span_id = s.id AND r.kind = ? AND m.value = ?) "
      "ORDER BY s.ordinal");
  row.bind(document, rep_kind_name(kind), model_digest);
  std::vector<Span> found;
  while (row.step()) found.push_back(read_span(row));
  return found;
}

bool MemoryFile::touch(std::span<const std::int64_t> spans) {
  if (spans.empty()) return true;
  return store_quietly([&] {
    begin_writing(false);
    Transaction transaction(*db_, Transaction::Kind::write);
    auto asked = db_->prepare("UPDATE spans SET asked = asked + 1, asked_at = ? WHERE id = ?");
    auto used = db_->prepare("UPDATE reps SET uses = uses + 1 WHERE span_id = ? AND blob IS NULL");
    for (const auto span : spans) {
      asked.bind(memory::unix_seconds(), span).run();
      used.bind(span).run();
    }
    transaction.commit();
  });
}

}  // namespace mneme
