// Forgetting: what goes is deleted in one transaction, then the file is rewritten until no byte of
// it is left.
#include "mneme/memory/memory_file.h"
#include "mneme/memory/provenance.h"
#include "mneme/memory/schema.h"
#include "mneme/memory/sqlite.h"

#include <algorithm>
#include <utility>

namespace mneme {

using memory::Transaction;

ForgetReport MemoryFile::forget(std::string_view label) {
  const auto found = find_document(label);
  if (!found) {
    std::string message =
        path_.string() + ": there is no source \"" + std::string(label.substr(0, 200)) + "\"";
    const auto all = documents();
    if (!all.empty())
      message += "; `mneme show` lists the " + std::to_string(all.size()) + " there are";
    throw Error(Errc::not_found, message);
  }
  return forget_documents({found->document.id}, std::nullopt);
}

ForgetReport MemoryFile::forget_documents(std::vector<std::int64_t> documents,
                                          std::optional<std::int64_t> session) {
  ForgetReport report;
  begin_writing(true);
  {
    Transaction transaction(*db_, Transaction::Kind::write);
    const auto asked_for = documents;
    // What was made from these documents goes too, and what was made from that.
    for (std::size_t i = 0; i < documents.size(); ++i) {
      auto row = db_->prepare(
          "SELECT id FROM documents WHERE provenance IS NOT NULL AND instr(provenance, ?) > 0");
      const auto needle = memory::provenance_needle(documents[i]);
      row.bind(needle);
      while (row.step()) {
        const auto made = row.integer(0);
        if (std::find(documents.begin(), documents.end(), made) == documents.end())
          documents.push_back(made);
      }
    }
    for (const auto document : documents) {
      {
        auto row = db_->prepare("SELECT label FROM documents WHERE id = ?");
        if (row.bind(document).step()) report.labels.emplace_back(row.text(0));
      }
      const auto needle = memory::provenance_needle(document);
      // A question goes with its answer: it may repeat what it asks about.
      db_->prepare(
             "DELETE FROM turns WHERE role = 'user' AND EXISTS (SELECT 1 FROM turns a WHERE "
             "a.session_id = turns.session_id AND a.number = turns.number + 1 AND a.role = "
             "'assistant' AND a.provenance IS NOT NULL AND instr(a.provenance, ?) > 0)")
          .bind(needle)
          .run();
      report.turns += db_->changes();
      db_->prepare("DELETE FROM turns WHERE provenance IS NOT NULL AND instr(provenance, ?) > 0")
          .bind(needle)
          .run();
      report.turns += db_->changes();
      // What goes only because of what it was made from gives its turns back: they had a source of
      // their own, or are the user's.
      if (std::find(asked_for.begin(), asked_for.end(), document) != asked_for.end()) {
        db_->prepare(
               "DELETE FROM turns WHERE id IN (SELECT t.id FROM turns t JOIN documents d ON "
               "d.session_id = t.session_id AND t.number BETWEEN d.first_turn AND d.last_turn "
               "WHERE d.id = ?)")
            .bind(document)
            .run();
        report.turns += db_->changes();
      }
      delete_content(document, false, report);
      db_->prepare("DELETE FROM documents WHERE id = ?").bind(document).run();
    }
    if (session) {
      db_->prepare("DELETE FROM turns WHERE session_id = ?").bind(*session).run();
      report.turns += db_->changes();
      db_->prepare("DELETE FROM sessions WHERE id = ?").bind(*session).run();
    }
    index_passages_again();
    bump_generation();
    // From this commit on until the file is rewritten, whoever opens it finishes the rewriting
    // first. The value is of this forgetting alone, so that nobody who finishes an earlier one takes
    // the mark away.
    write_meta("forgetting", std::to_string(generation()));
    transaction.commit();
  }
  unpacked_ = {};
  report.cleaned = finish_forgetting();
  return report;
}

// FTS5 only marks deleted words as deleted; building it again is what removes them.
void MemoryFile::index_passages_again() {
  db_->prepare("INSERT INTO spans_fts (spans_fts) VALUES ('delete-all')").run();
  auto words = db_->prepare("INSERT INTO spans_fts (rowid, text) VALUES (?, ?)");
  auto row = db_->prepare("SELECT id, document_id, begin, end FROM spans WHERE leaf ORDER BY id");
  while (row.step()) {
    const auto text = document_text(row.integer(1), row.integer(2), row.integer(3));
    words.bind(row.integer(0), text).run();
  }
}

bool MemoryFile::finish_forgetting() {
  const auto mark = meta("forgetting");
  if (!mark) return true;
  const bool finished = store_quietly([&] {
    begin_writing(true);
    const auto write_back = [&] {
      if (!checkpoint(true))
        throw Error(Errc::busy,
                    path_.string() + ": another process reads an older state of this memory");
    };
    write_back();
    db_->execute("VACUUM");
    // The mark goes only after the rewritten pages have replaced the old ones in the file itself.
    write_back();
    Transaction transaction(*db_, Transaction::Kind::write);
    db_->prepare("DELETE FROM meta WHERE key = 'forgetting' AND value = ?")
        .bind(memory::bytes_of(*mark))
        .run();
    recount_state_pages();
    transaction.commit();
    checkpoint();
  });
  if (finished) return true;
  // Another process may have stood in the way because it did the same.
  bool gone = false;
  return store_quietly([&] { gone = !meta("forgetting"); }) && gone;
}

}  // namespace mneme
