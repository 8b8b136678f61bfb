// Verification: everything in a memory file that can be checked without a model.
#include "mneme/memory/memory_file.h"
#include "mneme/memory/provenance.h"
#include "mneme/memory/schema.h"
#include "mneme/memory/sqlite.h"
#include "mneme/weights/digests.h"

#include <algorithm>
#include <set>

namespace mneme {

using memory::Transaction;

namespace {

// More would only repeat what is wrong.
constexpr std::size_t kMaxProblems = 100;

bool inside_character(std::string_view text, std::int64_t at) {
  return at < static_cast<std::int64_t>(text.size()) &&
         (static_cast<unsigned char>(text[static_cast<std::size_t>(at)]) & 0xC0) == 0x80;
}

}  // namespace

VerifyReport MemoryFile::verify() const {
  VerifyReport report;
  const auto problem = [&](std::string line) {
    if (report.problems.size() < kMaxProblems) report.problems.push_back(std::move(line));
  };
  const auto to_be_remade = [&](const std::string& which) {
    if (report.problems.size() < kMaxProblems) ++report.remade;
    problem(which + ": its bytes do not have its checksum; it will be made again");
  };
  // Damage that SQLite meets ends one check, not the others.
  const auto check = [&](const char* what, const auto& body) {
    try {
      body();
    } catch (const Error& failure) {
      if (failure.code() != Errc::corrupt) throw;
      problem(std::string(what) + ": " + failure.what());
    }
  };
  Transaction snapshot(*db_, Transaction::Kind::read);

  check("structure", [&] {
    auto row = db_->prepare("PRAGMA quick_check(20)");
    while (row.step()) {
      if (row.text(0) != "ok") problem("structure: " + std::string(row.text(0)));
    }
  });
  check("references", [&] {
    auto row = db_->prepare("PRAGMA foreign_key_check");
    while (row.step()) {
      problem("references: row " + std::to_string(row.integer(1)) + " of " +
              std::string(row.text(0)) + " refers to a row of " + std::string(row.text(2)) +
              " that is not there");
    }
  });

  if (meta("forgetting")) {
    problem(
        "forgetting: it was interrupted, and bytes of what is deleted may still be in the file; "
        "opening it with leave to write, while no other process uses it, takes them out");
  }

  std::set<std::int64_t> known;
  check("documents", [&] {
    for (const auto& info : documents()) {
      ++report.documents;
      known.insert(info.document.id);
      const auto name = "document \"" + info.document.label + "\"";
      check("texts", [&] {
        const auto text = document_text(info.document.id);
        if (sha256_hex(text) != info.document.content_hash)
          problem(name + ": its text does not have its content hash");
        if (const auto bad = find_invalid_utf8(text); bad >= 0) {
          problem(name + ": its text is not valid UTF-8 at byte " + std::to_string(bad));
        }
        const auto all = spans(info.document.id);
        for (std::size_t i = 0; i < all.size(); ++i) {
          const auto& s = all[i];
          report.passages += s.kind == "passage";
          const auto which = name + ": span " + std::to_string(s.id);
          if (s.begin < 0 || s.end < s.begin || s.end > static_cast<std::int64_t>(text.size())) {
            problem(which + " is outside the text");
          } else if (inside_character(text, s.begin) || inside_character(text, s.end)) {
            problem(which + " begins or ends inside a character");
          }
          if (s.order != static_cast<std::int64_t>(i)) problem(which + " is out of order");
          if (s.parent < -1 || s.parent >= static_cast<std::int64_t>(i)) {
            problem(which + " has no earlier span as parent");
          } else if (s.parent >= 0) {
            const auto& parent = all[static_cast<std::size_t>(s.parent)];
            if (parent.begin > s.begin || parent.end < s.end)
              problem(which + " is not within its parent");
          }
        }
      });
    }
    auto row = db_->prepare(
        "SELECT count(*) FROM texts t JOIN documents d ON d.id = t.document_id "
        "WHERE t.part < 0 OR t.part * ? >= d.bytes");
    if (row.bind(memory::kTextPartBytes).step() && row.integer(0) > 0) {
      problem("texts: " + std::to_string(row.integer(0)) +
              " parts lie behind the end of their text");
    }
  });

  check("representations", [&] {
    auto row = db_->prepare("SELECT id, span_id, provenance FROM reps ORDER BY id");
    while (row.step()) {
      ++report.reps;
      const auto which = "representation " + std::to_string(row.integer(0)) + " of span " +
                         std::to_string(row.integer(1));
      const auto damaged = damaged_reps_;
      check("representations", [&] {
        if (!get_by_id(row.integer(0))) to_be_remade(which);
      });
      damaged_reps_ = damaged;
      if (row.is_null(2)) continue;
      const auto documents = memory::read_provenance(row.text(2));
      if (memory::write_provenance(documents) != row.text(2))
        problem(which + ": its list of sources is malformed");
      for (const auto document : documents) {
        if (!known.contains(document))
          problem(which + ": names source " + std::to_string(document) + ", which is not there");
      }
    }
    auto orphans = db_->prepare(
        "SELECT count(*) FROM state_parts p JOIN reps r ON r.id = p.rep_id WHERE r.blob IS NOT "
        "NULL");
    if (orphans.step() && orphans.integer(0) > 0)
      problem("representations: parts of a state belong to none");
  });

  check("turns", [&] {
    auto row = db_->prepare(
        "SELECT t.id, t.number, t.text, t.provenance, t.session_id FROM turns t ORDER BY "
        "t.session_id, t.number");
    std::int64_t session = 0, last = 0;
    while (row.step()) {
      ++report.turns;
      if (row.integer(4) != session) last = 0;
      session = row.integer(4);
      const auto which =
          "turn " + std::to_string(row.integer(1)) + " of session " + std::to_string(session);
      if (row.integer(1) <= last) problem(which + " is out of order");
      last = row.integer(1);
      if (find_invalid_utf8(row.text(2)) >= 0) problem(which + " is not valid UTF-8");
      for (const auto document : memory::read_provenance(row.text(3))) {
        if (!known.contains(document))
          problem(which + " names source " + std::to_string(document) + ", which is not there");
      }
    }
  });

  check("turns", [&] {
    const auto wrong = db_->integer(
        "SELECT count(*) FROM documents WHERE (first_turn IS NOT NULL OR last_turn IS NOT NULL) "
        "AND "
        "(session_id IS NULL OR coalesce(first_turn, 0) < 1 OR coalesce(last_turn, 0) < first_turn "
        "OR last_turn > " +
        std::to_string(memory::kMaxTurnNumber) + ")");
    if (wrong > 0)
      problem("turns: " + std::to_string(wrong) + " documents hold turns that no session can have");
  });

  check("word index", [&] {
    const auto missing = db_->integer(
        "SELECT count(*) FROM spans WHERE leaf AND id NOT IN (SELECT id FROM spans_fts_docsize)");
    if (missing > 0) problem("word index: " + std::to_string(missing) + " passages are not in it");
    const auto extra = db_->integer(
        "SELECT count(*) FROM spans_fts_docsize WHERE id NOT IN (SELECT id FROM spans WHERE leaf)");
    if (extra > 0) problem("word index: " + std::to_string(extra) + " entries have no passage");
  });

  check("indexes", [&] {
    std::vector<std::string> names;
    {
      auto row = db_->prepare("SELECT name FROM indexes");
      while (row.step()) names.emplace_back(row.text(0));
    }
    for (const auto& name : names) {
      const auto damaged = damaged_reps_;
      if (!get_index(name)) to_be_remade("index \"" + name + "\"");
      damaged_reps_ = damaged;
    }
  });

  check("budget", [&] {
    const auto pages = db_->integer(
        "SELECT coalesce(sum(pageno), 0) FROM dbstat('main', 1) WHERE name IN "
        "(SELECT name FROM sqlite_schema WHERE tbl_name = 'state_parts')");
    // The counter also holds the tables' first pages when empty, and pages for finding moved pages.
    if (std::abs(pages - state_pages()) > 8 + pages / 512) {
      problem("budget: states take " + std::to_string(pages) + " pages, " +
              std::to_string(state_pages()) + " are counted");
    }
  });
  return report;
}

}  // namespace mneme
