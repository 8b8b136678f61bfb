// Copies of a memory in use, and merging one memory into another.
#include "mneme/memory/memory_file.h"
#include "mneme/memory/schema.h"
#include "mneme/memory/sqlite.h"
#include "mneme/weights/atomic_file.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <set>
#include <unistd.h>
#include <utility>

namespace mneme {

using memory::Database;
using memory::Transaction;

namespace {

void sync_or_throw(const std::filesystem::path& path, int flags,
                   const std::filesystem::path& named) {
  if (!sync_to_disk(path, flags))
    throw Error(Errc::io, named.string() + ": cannot be written: " + std::strerror(errno));
}

// A file that goes unless it is kept.
class Scrap {
 public:
  explicit Scrap(std::filesystem::path path) : path_(std::move(path)) {}
  ~Scrap() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  Scrap(const Scrap&) = delete;
  Scrap& operator=(const Scrap&) = delete;
  void keep() { path_.clear(); }

 private:
  std::filesystem::path path_;
};

template <class Check>
bool passes(const Check& check) {
  try {
    check();
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

void MemoryFile::export_to(const std::filesystem::path& to) const {
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::symlink_status(to, error))) {
    throw Error(Errc::invalid, to.string() + ": exists already; name a new file");
  }
  const auto folder = to.has_parent_path() ? to.parent_path() : std::filesystem::path(".");
  if (!std::filesystem::is_directory(folder, error)) {
    throw Error(Errc::io,
                to.string() + ": cannot be created: there is no folder " + folder.string());
  }
  if (::access(folder.c_str(), W_OK) != 0) {
    throw Error(Errc::io, to.string() + ": cannot be created: its folder is read-only");
  }
  const std::filesystem::path partial = to.string() + ".partial-" + std::to_string(::getpid());
  ::unlink(partial.c_str());
  Scrap scrap(partial);
  // One consistent snapshot, compact, without free pages; in WAL mode nobody waits for it.
  db_->vacuum_into(partial, to);
  {
    Database copy(partial, Database::Mode::read_write, options_.busy_timeout);
    copy.call_it(to);
    copy.execute("PRAGMA journal_mode = DELETE");
    Transaction transaction(copy, Transaction::Kind::write);
    // A copy has no old pages to be cleaned of, and its states lie on other pages.
    copy.execute("DELETE FROM meta WHERE key = 'forgetting'");
    copy.execute(
        "INSERT OR REPLACE INTO counters (key, value) SELECT 'state_pages', coalesce(sum(pageno), "
        "0) "
        "FROM dbstat('main', 1) WHERE name IN (SELECT name FROM sqlite_schema WHERE tbl_name = "
        "'state_parts')");
    transaction.commit();
  }
  sync_or_throw(partial, O_RDONLY, to);
  if (std::rename(partial.c_str(), to.c_str()) != 0) {
    throw Error(Errc::io, to.string() + ": cannot be created: " + std::strerror(errno));
  }
  scrap.keep();
  sync_or_throw(folder, O_RDONLY | O_DIRECTORY, to);
}

ImportReport MemoryFile::import_from(const std::filesystem::path& from,
                                     const ImportOptions& options) {
  std::error_code error;
  if (std::filesystem::equivalent(from, path_, error)) {
    throw Error(Errc::invalid,
                from.string() + ": is the memory itself; name another file to import");
  }
  const auto other = open(from, Access::read_only);
  // One version of the other file from beginning to end, whoever writes it meanwhile.
  Transaction snapshot(*other->db_, Transaction::Kind::read);
  const auto documents = other->documents();
  ImportReport report;

  // Sessions whose name is free come along; the documents of the others do not.
  std::map<std::string, bool> session_comes;
  const auto sessions_here = sessions();
  for (const auto& session : other->sessions()) {
    const bool comes =
        passes([&] { check_session_name(session.name); }) &&
        std::none_of(sessions_here.begin(), sessions_here.end(),
                     [&](const SessionInfo& here) { return here.name == session.name; });
    session_comes[session.name] = comes;
    if (!comes) report.sessions_left_out.push_back(session.name);
  }
  const auto comes = [&](const DocumentInfo& info) {
    return info.session.empty() || session_comes[info.session];
  };

  if (options.conflict == ImportOptions::Conflict::refuse) {
    for (const auto& info : documents) {
      if (!comes(info)) continue;
      const auto here = find_document(info.document.label);
      if (here && here->document.content_hash != info.document.content_hash) {
        throw Error(Errc::invalid, from.string() + ": \"" + info.document.label +
                                       "\" has another text here; choose which one stays");
      }
    }
  }
  const auto add = [](StoreReport& sum, const StoreReport& part) {
    sum.stored += part.stored;
    sum.not_stored += part.not_stored;
    sum.shrunk += part.shrunk;
    sum.dropped += part.dropped;
    if (sum.obstacle == StoreReport::Obstacle::none) {
      sum.obstacle = part.obstacle;
      sum.reason = part.reason;
    }
  };

  // What a new memory does not know about itself yet, it takes over: models, prompts, thresholds.
  {
    begin_writing(true);
    Transaction transaction(*db_, Transaction::Kind::write);
    auto entries = other->db_->prepare(
        "SELECT key, value FROM meta WHERE key NOT IN ('forgetting', 'budget_bytes')");
    while (entries.step()) {
      if (!meta(entries.text(0))) write_meta(entries.text(0), entries.text(1));
    }
    transaction.commit();
  }

  std::map<std::int64_t, std::int64_t> document_here, span_here;
  const auto translate =
      [&](const std::vector<std::int64_t>& provenance) -> std::optional<std::vector<std::int64_t>> {
    std::vector<std::int64_t> here;
    for (const auto document : provenance) {
      const auto found = document_here.find(document);
      if (found == document_here.end()) return std::nullopt;
      here.push_back(found->second);
    }
    return here;
  };

  // A document with its spans; one of a session is part of a transaction that is open.
  const auto take = [&](const DocumentInfo& info) {
    const auto here = find_document(info.document.label);
    if (here && here->document.content_hash != info.document.content_hash &&
        options.conflict == ImportOptions::Conflict::keep) {
      report.kept.push_back(info.document.label);
      return;
    }
    const auto provenance = translate(info.provenance);
    if (!provenance) {
      ++report.documents_left_out;
      return;
    }
    auto document = info.document;
    document.text = other->document_text(info.document.id);
    const auto spans = other->spans(info.document.id);
    const PutOptions belonging{info.session, *provenance};
    const auto store = [&] {
      if (info.session.empty()) return put_document(document, spans, {}, belonging);
      check_document(document, spans, {}, belonging);
      return write_document(document, spans, {}, belonging);
    };
    const auto result = store();
    document_here[info.document.id] = result.document;
    switch (result.outcome) {
      case PutResult::Outcome::added:
        ++report.added;
        break;
      case PutResult::Outcome::replaced:
        ++report.replaced;
        break;
      case PutResult::Outcome::unchanged:
        ++report.unchanged;
        break;
    }
    if (result.outcome != PutResult::Outcome::unchanged)
      report.spans += static_cast<std::int64_t>(spans.size());
    // The same text may have been cut otherwise here: then only equal spans are matched.
    std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> by_range;
    for (const auto& s : this->spans(result.document)) by_range[{s.begin, s.end}] = s.id;
    for (const auto& s : spans) {
      if (const auto match = by_range.find({s.begin, s.end}); match != by_range.end())
        span_here[s.id] = match->second;
    }
  };
  for (const auto& info : documents) {
    if (info.session.empty()) take(info);
  }
  // All or none: if an import is killed, the next one must not find the names taken by sessions that came in part.
  if (std::any_of(session_comes.begin(), session_comes.end(),
                  [](const auto& session) { return session.second; })) {
    begin_writing(true);
    Transaction transaction(*db_, Transaction::Kind::write);
    for (const auto& info : documents) {
      if (!info.session.empty() && comes(info)) take(info);
    }
    for (const auto& [name, free] : session_comes) {
      if (!free) continue;
      std::vector<Turn> kept;
      for (auto& turn : other->turns(name)) {
        if (turn.number < 1 || turn.number > memory::kMaxTurnNumber) {
          throw Error(Errc::corrupt, from.string() + ": session \"" + name + "\" claims a turn " +
                                         std::to_string(turn.number) +
                                         "; run `mneme verify` on it");
        }
        auto provenance = translate(turn.provenance);
        if (!provenance || !passes([&] { check_turns({&turn, 1}); })) {
          ++report.turns_left_out;
          // As in forgetting, a question goes with its answer.
          if (turn.role == "assistant" && !kept.empty() && kept.back().role == "user" &&
              kept.back().number == turn.number - 1) {
            kept.pop_back();
            ++report.turns_left_out;
          }
          continue;
        }
        turn.provenance = std::move(*provenance);
        kept.push_back(std::move(turn));
      }
      const auto session = session_id(name, true);
      // With the numbers that they have: documents of the session refer to them.
      std::set<std::int64_t> numbers;
      for (const auto& turn : kept) {
        insert_turn(session, turn.number, turn);
        numbers.insert(turn.number);
      }
      for (const auto& info : documents) {
        const auto here = document_here.find(info.document.id);
        if (info.session == name && here != document_here.end() &&
            numbers.contains(info.first_turn) && numbers.contains(info.last_turn))
          record_turns(here->second, session, info.first_turn, info.last_turn);
      }
      ++report.sessions;
    }
    transaction.commit();
    checkpoint();
  }

  // Representations: small ones first, then states as far as the budget takes them. What another memory kept a part of is
  // not what this one would have.
  const bool kept_alike = meta("kv") == other->meta("kv");
  for (const bool states : {false, true}) {
    std::vector<Rep> batch;
    std::int64_t bytes = 0;
    const auto flush = [&] {
      add(report.states, put(batch, Admission::ahead));
      batch.clear();
      bytes = 0;
    };
    for (const auto& [there, here] : span_here) {
      for (const auto& info : other->reps(there)) {
        if (is_state(info.key.kind) != states) continue;
        auto key = info.key;
        key.span = here;
        if (has(key)) continue;
        if (!kept_alike && key.codec.starts_with(memory::kKept)) {
          ++report.reps_left_out;
          continue;
        }
        auto rep = other->get(info.key);
        const auto provenance = translate(info.provenance);
        if (!rep || !provenance) {
          ++report.reps_left_out;
          continue;
        }
        rep->key = key;
        rep->provenance = *provenance;
        bytes += static_cast<std::int64_t>(rep->blob.size());
        batch.push_back(std::move(*rep));
        if (bytes > (std::int64_t{8} << 20)) flush();
      }
    }
    if (!batch.empty()) flush();
  }
  return report;
}

std::int64_t MemoryFile::upgrade(const std::filesystem::path& path) {
  // Format 1 is the first: what opens has it, anything else is refused by name.
  open(path, Access::read_write);
  return memory::kFormat;
}

}  // namespace mneme
