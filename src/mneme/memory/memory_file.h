// MemoryFile: one *.mneme file. Documents, spans, representations, sessions and counters under one
// set of guarantees; it knows no model. What reads, asks and chats stands on it.
#pragma once

#include "mneme/core/error.h"
#include "mneme/memory/consolidation.h"
#include "mneme/memory/rep.h"
#include "mneme/text/document.h"
#include "mneme/text/span.h"

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

struct sqlite3;

namespace mneme {

namespace memory {
class Database;
class Statement;
}  // namespace memory

/// A document as a memory lists it, without its text.
struct DocumentInfo {
  Document document;                     ///< with an empty `text`
  std::int64_t bytes = 0;                ///< length of the text
  std::int64_t spans = 0;                ///< passages
  std::int64_t tokens = 0;               ///< tokens of the passages
  std::int64_t with_states = 0;          ///< passages that have a state
  std::string session;                   ///< the session that it belongs to, empty for a source
  std::vector<std::int64_t> provenance;  ///< documents that it was made from
  std::int64_t first_turn = 0, last_turn = 0;  ///< turns of the session that it holds; 0: none
};

/// What put_document did.
struct PutResult {
  enum class Outcome { added, unchanged, replaced };
  Outcome outcome = Outcome::added;
  std::int64_t document = 0;
  std::vector<std::int64_t>
      spans;  ///< ids, in the order of the spans that were given (or that were there)
};

/// One turn of a chat.
struct Turn {
  std::int64_t number = 0;  ///< from 1, set when it is stored
  std::string role;         ///< "user", "assistant", ...
  std::string text;
  std::vector<std::int32_t> ids;  ///< token ids, where the text alone would not give them again
  std::vector<std::int64_t>
      provenance;  ///< documents it was made from: it goes when one of them is forgotten
  std::int64_t written_at_s = 0;  ///< seconds since 1970, 0: set when it is stored
};

/// A chat session as a memory lists it.
struct SessionInfo {
  std::string name;
  std::int64_t turns = 0;
  std::int64_t created_at_s = 0;
};

/// A stored search index.
struct IndexInfo {
  std::string name;             ///< "dense", ...
  std::string spec;             ///< how it was built
  std::string model_digest;     ///< of the embedder, "" for none
  std::int64_t generation = 0;  ///< generation() of the texts that it was built over
  std::int64_t bytes = 0;
};

/// What forget did.
struct ForgetReport {
  std::vector<std::string> labels;  ///< the source, and what was made from it in sessions
  std::int64_t spans = 0;
  std::int64_t reps =
      0;  ///< representations, those of other sources that had it in their context included
  std::int64_t turns = 0;
  /// Only now it is forgotten: the file was rewritten, no byte is left. False: deleted, but another
  /// process stood in the way of rewriting, or the disk is full; the next one to open the file does
  /// it (Usage::forget_unfinished).
  bool cleaned = true;
};

/// What verify found: one line a problem, none if all is well.
struct VerifyReport {
  std::vector<std::string> problems;
  std::int64_t documents = 0, passages = 0, reps = 0, turns = 0;
  std::int64_t remade =
      0;  ///< of the problems, those of what is computed, and made again when it is wanted
  std::int64_t compared = 0;  ///< spans whose states were computed again and compared
  [[nodiscard]] bool ok() const { return problems.empty(); }
};

/// How a memory is merged into another.
struct ImportOptions {
  /// What happens to a label that both hold with different text.
  enum class Conflict { replace, keep, refuse };
  Conflict conflict = Conflict::replace;
};

/// What import_from did.
struct ImportReport {
  std::int64_t added = 0, replaced = 0, unchanged = 0;
  std::vector<std::string>
      kept;  ///< labels whose text here was kept although the other file has another
  std::int64_t spans = 0;
  StoreReport states;
  std::int64_t reps_left_out =
      0;  ///< representations whose context was not imported as a whole, or damaged
  std::int64_t documents_left_out = 0;  ///< what was made from a source that was not imported
  std::int64_t sessions = 0;
  /// Sessions whose name is taken here, or cannot be one.
  std::vector<std::string> sessions_left_out;
  /// Turns of sessions that came: made from what was not imported, or damaged; and their questions.
  std::int64_t turns_left_out = 0;
};

/// What a memory file holds, in bytes.
struct Usage {
  std::int64_t state_bytes = 0;       ///< payload of the states
  std::int64_t state_page_bytes = 0;  ///< the pages that they take
  std::int64_t free_page_bytes =
      0;                        ///< pages that wait to be used again; the budget counts them too
  std::int64_t file_bytes = 0;  ///< the file, without what still lies in its -wal
  std::int64_t wal_bytes = 0;
  std::int64_t budget_bytes = 0;
  std::int64_t spans = 0;  ///< passages
  std::int64_t spans_with_states = 0;
  std::int64_t consolidated_spans =
      0;  ///< passages whose state was made smaller or given up for the budget
  std::int64_t text_only_spans = 0;   ///< those of them that have no state left
  std::int64_t unembedded_spans = 0;  ///< found by their words only: their reading was interrupted
  /// A forget was interrupted, and this process cannot end it: what it deleted may still stand in
  /// the file as bytes. verify() reports it as a problem.
  bool forget_unfinished = false;
};

/// A memory file. One object belongs to one thread; other threads and processes open their own. It
/// must not live across fork().
///
/// While it is written the file is in WAL mode; the last writer to close it makes it one file
/// again. A crash at any moment leaves a file that opens. Unless said otherwise every method throws
/// Error: `busy` if another process keeps the write lock beyond the timeout, `io` if the system
/// refuses (then nothing has changed), `corrupt` for damage.
class MemoryFile {
 public:
  enum class Access {
    read_only,
    read_write,  ///< opens a file that cannot be written too, for reading: see writable()
    create,      ///< as read_write; a missing or empty file becomes a new memory
  };
  struct Options {
    /// What the file may take, in bytes, as long as states can give way: text and its index stay, and leave states
    /// at least half. Unset: what the file says, 1 GiB in a new one.
    std::optional<std::int64_t> budget_bytes;
    /// How long to wait for another process before `busy`.
    std::chrono::milliseconds busy_timeout{2000};
    /// Who gives way when the budget is full; null: default_consolidation_policy().
    std::shared_ptr<const ConsolidationPolicy> policy;
  };
  static constexpr std::int64_t kDefaultBudgetBytes = std::int64_t{1} << 30;
  static constexpr std::int64_t kMinBudgetBytes = std::int64_t{1} << 20;
  static constexpr std::int64_t kMaxLabelBytes = 4096;
  static constexpr std::int64_t kMaxTurnBytes = std::int64_t{16} << 20;

  /// Opens a memory file. Throws `not_found` (no such file), `corrupt` (no memory file, or a
  /// damaged one), `mismatch` (a newer format), `busy`, `io`.
  ///
  /// What an interrupted process left is put right first, also by `read_only`, if this process may
  /// write the file: a half-written transaction is rolled back, an interrupted forget is ended. Where
  /// it may not, the first is an error (`io`), the second is told by usage() and verify().
  static std::unique_ptr<MemoryFile> open(const std::filesystem::path& path, Access access,
                                          const Options& options);
  static std::unique_ptr<MemoryFile> open(const std::filesystem::path& path, Access access);
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  /// Finishes: writes the -wal back and makes the memory one file, unless somebody else still has
  /// it open. The destructor does the same without reporting; nothing stored is lost if it fails.
  void close();

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Whether storing can succeed at all: false for read-only files and folders.
  [[nodiscard]] bool writable() const { return writable_; }
  /// Takes the writer's place until this object goes: a lock file beside the memory, for jobs that
  /// write for minutes. Throws `busy` if another process has it beyond the timeout. Single
  /// transactions do not need it.
  void claim_writer();

  /// The connection, for search over `spans_fts` (a contentless FTS5 table: `text`, rowid = id of a
  /// passage). Its statements must be reset before the next call here. Do not write through it.
  [[nodiscard]] sqlite3* handle() const;
  static constexpr const char* kFtsTable = "spans_fts";
  /// Grows with every change of documents or embeddings: a cache of either is valid while this is
  /// unchanged.
  [[nodiscard]] std::int64_t generation() const;

  // Meta and counters.
  [[nodiscard]] std::optional<std::string> meta(std::string_view key) const;
  void set_meta(std::string_view key, std::string_view value);
  /// Sets several at once, or none.
  void set_meta(std::span<const std::pair<std::string, std::string>> entries);
  [[nodiscard]] std::int64_t counter(std::string_view key) const;
  /// Adds to a counter. Not waited for on the disk; false (and nothing thrown) if it cannot be
  /// stored now.
  bool add_counter(std::string_view key, std::int64_t amount);

  // Documents and spans.
  struct PutOptions {
    std::string session;  ///< makes it part of that session's memory, not a source
    std::vector<std::int64_t>
        provenance;  ///< documents it was made from: it goes when one of them is forgotten
    /// The turns of the session that the document holds, which leave the context for it; 0: none.
    /// They are forgotten with it; they stay as turns if it goes only for what it was made from.
    std::int64_t first_turn = 0, last_turn = 0;
  };
  /// Stores a document with its spans (as cut_spans gives them) and their small representations, in
  /// one transaction that is on the disk when it returns. `reps[i].key.span` is an index into
  /// `spans`; they must not be states. The same label with the same content is left as it is; with
  /// other content the old version goes, with its representations and those of other documents that
  /// had it in their context. What chats said from it stays, turns and documents: only forget takes
  /// that. Throws `invalid` if spans do not fit the text, `not_found` if a turn or a document that it
  /// holds is gone meanwhile.
  PutResult put_document(const Document& document, std::span<const Span> spans,
                         std::span<const Rep> reps, const PutOptions& options);
  PutResult put_document(const Document& document, std::span<const Span> spans,
                         std::span<const Rep> reps = {});
  /// All documents, sources first, in the order they were first stored.
  [[nodiscard]] std::vector<DocumentInfo> documents() const;
  [[nodiscard]] std::optional<DocumentInfo> find_document(std::string_view label) const;
  /// The text of a document. Throws `not_found` if there is none with that id.
  [[nodiscard]] std::string document_text(std::int64_t document) const;
  /// Bytes [begin, end) of a document's text; unpacks only the parts that hold them. Throws
  /// `not_found`, `invalid`.
  [[nodiscard]] std::string document_text(std::int64_t document, std::int64_t begin,
                                          std::int64_t end) const;
  /// The spans of a document in order; `parent` is an index into the result.
  [[nodiscard]] std::vector<Span> spans(std::int64_t document) const;
  [[nodiscard]] std::optional<Span> find_span(std::int64_t span) const;
  /// The text of a span. Throws `not_found`.
  [[nodiscard]] std::string span_text(std::int64_t span) const;
  /// Calls `each`, which may read but not write here, with every passage, by id; `session_too`:
  /// also those that chats have left.
  void for_each_passage(const std::function<void(const Span&)>& each,
                        bool session_too = true) const;
  /// The passages of a document that no representation of this kind and model was stored for: where a reading was
  /// interrupted.
  [[nodiscard]] std::vector<Span> passages_without(std::int64_t document, RepKind kind,
                                                   std::string_view model_digest) const;
  /// Counts that these spans were placed for a question, and with them their states. Never throws
  /// for a file that cannot be written; false then.
  bool touch(std::span<const std::int64_t> spans);

  // Representations.
  /// The representation, or nothing: also if its checksum is wrong, which is counted
  /// (`damaged_reps()`).
  [[nodiscard]] std::optional<Rep> get(const RepKey& key) const;
  /// The same for any codec: what is left of a state that was made smaller. The largest, if there
  /// are several.
  [[nodiscard]] std::optional<Rep> get_any_codec(const RepKey& key) const;
  [[nodiscard]] bool has(const RepKey& key) const;
  /// All representations of a span, without bytes.
  [[nodiscard]] std::vector<RepInfo> reps(std::int64_t span) const;
  /// Calls `each`, which may read but not write here, with every representation of one kind and
  /// model whose checksum holds, by span.
  void for_each_rep(RepKind kind, std::string_view model_digest,
                    const std::function<void(const Rep&)>& each) const;
  /// Stores representations; one with the same key is replaced. States are stored within the
  /// budget, in transactions of a few megabytes each. Never throws for a file that is busy, full or
  /// cannot be written: the report says so.
  StoreReport put(std::span<const Rep> reps, Admission admission);
  /// Whether states, too, are on the disk when put returns; off, a crash may lose the last ones, which can be remade.
  void sync_states(bool on) { sync_states_ = on; }
  /// Deletes representations; keys that none has are ignored. False, and nothing is deleted, for a file that is busy, full
  /// or cannot be written.
  bool drop_reps(std::span<const RepKey> keys);
  /// Deletes all states (of one span): they are remade on use.
  void drop_states(std::optional<std::int64_t> span = std::nullopt);
  /// Representations whose checksum was wrong since this object was opened.
  [[nodiscard]] std::int64_t damaged_reps() const { return damaged_reps_; }

  // The budget.
  /// Makes a state smaller: given the state and how often that was done before, a smaller form
  /// (fewer tokens, fewer bits) under the same span, kind, model, layer and prefix, or nothing if
  /// only text is left. Runs inside a transaction: it must not call back into this object.
  using Consolidate = std::function<std::optional<Rep>(const Rep& state, std::int64_t rung)>;
  /// `rungs`: how often a state can be made smaller at most; without it states become text only at
  /// once.
  void set_consolidate(Consolidate consolidate, std::int64_t rungs);
  /// Throws `invalid` below kMinBudgetBytes.
  static void check_budget(std::int64_t budget_bytes);
  /// Sets the budget, kept in the file, and consolidates at once down to it. Throws `invalid` below
  /// kMinBudgetBytes.
  StoreReport set_budget(std::int64_t budget_bytes);
  [[nodiscard]] Usage usage() const;

  // Chat sessions.
  /// Throws `invalid` unless a session can have that name: 1 to 256 bytes of UTF-8 without control
  /// characters.
  static void check_session_name(std::string_view name);
  [[nodiscard]] std::vector<SessionInfo> sessions() const;
  [[nodiscard]] std::vector<Turn> turns(std::string_view session) const;
  /// Appends turns, all or none; makes the session if there is none. On the disk when it returns.
  /// Returns the number of the last one.
  std::int64_t append_turns(std::string_view session, std::span<const Turn> turns);
  std::int64_t append_turn(std::string_view session, const Turn& turn) {
    return append_turns(session, {&turn, 1});
  }
  /// The number of the last turn that stands in a document of the session (PutOptions::last_turn), 0
  /// if none does: the turns after it are what a chat still has to keep in its context.
  [[nodiscard]] std::int64_t moved_turns(std::string_view session) const;
  /// Forgets a session: its turns and the documents that it left, as thoroughly as forget.
  ForgetReport clear_session(std::string_view session);

  // Search indexes.
  /// Stores an index built over the texts of `index.generation`; replaces one of the same name. It
  /// goes when a document is replaced or forgotten.
  void put_index(const IndexInfo& index, std::string_view blob);
  [[nodiscard]] std::optional<IndexInfo> find_index(std::string_view name) const;
  /// The bytes of an index, or nothing: also if its checksum is wrong.
  [[nodiscard]] std::optional<std::string> get_index(std::string_view name) const;

  // The whole file.
  /// Forgets a source: its text, spans, representations, index entries, what other sources'
  /// representations and chat turns hold of it; of a document that holds turns of a session, these
  /// turns. Then rewrites the file so that no byte of it is left. Throws `not_found`.
  ForgetReport forget(std::string_view label);
  /// Checks structure, ranges, texts and all checksums. Damage is reported, not thrown.
  [[nodiscard]] VerifyReport verify() const;
  /// Writes a compact copy, also while others use the file; it appears whole or not at all. Throws
  /// `invalid` if `to` exists.
  void export_to(const std::filesystem::path& to) const;
  /// Merges another memory file into this one, one transaction a source and one for all sessions: a
  /// name that is taken here is left out, so none may come in part. Throws `invalid` on a conflict
  /// to be refused, before anything is changed.
  ImportReport import_from(const std::filesystem::path& from, const ImportOptions& options);
  /// Brings a file of an older format to this one; the format it had. Throws `mismatch` for a newer
  /// one.
  static std::int64_t upgrade(const std::filesystem::path& path);

 private:
  MemoryFile(const std::filesystem::path& path, const Options& options);

  // memory_file.cpp: the connection, transactions, meta.
  void connect(Access access);
  void put_right() const;
  void begin_writing(bool durable);
  bool checkpoint(bool wait = false) const;
  void write_meta(std::string_view key, std::string_view value);
  void raise_counter(std::string_view key, std::int64_t amount);
  void bump_generation() { raise_counter("generation", 1); }
  bool store_quietly(const std::function<void()>& write);

  // documents.cpp
  std::vector<DocumentInfo> list_documents(std::optional<std::string_view> label) const;
  std::int64_t text_bytes(std::int64_t document) const;
  std::string read_text_part(std::int64_t document, std::int64_t part, std::int64_t bytes) const;
  static void check_document(const Document& document, std::span<const Span> spans,
                             std::span<const Rep> reps, const PutOptions& options);
  PutResult write_document(const Document& document, std::span<const Span> spans,
                           std::span<const Rep> reps, const PutOptions& options);
  void write_content(std::int64_t document, const Document& content, std::span<const Span> spans,
                     std::span<const Rep> reps, PutResult& result);
  void delete_content(std::int64_t document, bool from_fts, ForgetReport& report);
  void check_provenance(std::span<const std::int64_t> documents) const;

  // reps.cpp
  std::int64_t write_rep(std::int64_t span, const Rep& rep);
  void delete_rep(std::int64_t rep);
  RepInfo read_rep_info(memory::Statement& row) const;
  std::optional<Rep> read_rep(memory::Statement& row) const;
  std::optional<StoreReport::Obstacle> put_one(const Rep& rep, Admission admission,
                                               std::int64_t& wal_pages, StoreReport& report);
  std::optional<std::int64_t> find_rep(const RepKey& key) const;
  std::optional<Rep> get_by_id(std::int64_t rep) const;
  std::optional<Rep> get_where(const RepKey& key, bool any_codec) const;

  // budget.cpp
  std::int64_t used_pages() const;
  std::int64_t state_pages() const;
  std::int64_t state_limit_pages() const;
  void recount_state_pages();
  std::int64_t shortage(std::int64_t pages, std::int64_t wal_pages) const;
  std::int64_t leftover_wal_pages() const;
  /// Where a state can be written: in this transaction, in one after it (room was made), nowhere.
  enum class Room { here, next_transaction, none };
  Room make_room(std::int64_t pages, const RepKey& incoming, Admission admission,
                 std::int64_t wal_pages, StoreReport& report);
  struct HeldState;
  std::vector<HeldState> held_states(const RepKey* except) const;
  bool give_way(const RepKey* incoming, Admission admission,
                const std::function<std::int64_t()>& missing, std::int64_t keep_free,
                std::int64_t wal_room, StoreReport& report);
  std::int64_t shrink(HeldState& state, std::int64_t wal_room);
  void drop(const HeldState& state);
  void release_free_pages();

  // sessions.cpp
  std::int64_t session_id(std::string_view name, bool create);
  void check_turns(std::span<const Turn> turns) const;
  void insert_turn(std::int64_t session, std::int64_t number, const Turn& turn);
  void record_turns(std::int64_t document, std::int64_t session, std::int64_t first,
                    std::int64_t last);

  // forget.cpp
  ForgetReport forget_documents(std::vector<std::int64_t> documents,
                                std::optional<std::int64_t> session);
  void index_passages_again();
  bool finish_forgetting();

  std::filesystem::path path_;
  Options options_;
  std::shared_ptr<const ConsolidationPolicy> policy_;
  Consolidate consolidate_;
  std::int64_t rungs_ = 0;
  std::unique_ptr<memory::Database> db_;
  bool writable_ = false;
  bool sync_states_ = false;
  std::int64_t budget_bytes_ = kDefaultBudgetBytes;
  int writer_lock_ = -1;
  mutable std::int64_t damaged_reps_ = 0;
  // The part of a text that was unpacked last: passages of one document are read in a row.
  struct UnpackedPart {
    std::int64_t document = 0, part = 0, generation = -1;
    std::string text;
  };
  mutable UnpackedPart unpacked_;
};

}  // namespace mneme
