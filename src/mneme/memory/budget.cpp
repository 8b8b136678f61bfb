// The byte budget: pages of states and free pages, never more than the budget, the -wal of their writing included.
//
//   state_pages + free_pages + wal_pages <= budget / page size      at every moment
//
// state_pages is a counter in the file, kept by the difference in used pages around every change of `state_parts`. A new
// state stands twice for a moment, in the -wal and in the pages set aside for it, so room is made for both.
#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "mneme/memory/memory_file.h"
#include "mneme/memory/schema.h"
#include "mneme/memory/sqlite.h"

namespace mneme {

using memory::kPageBytes;
using memory::Transaction;

namespace {

// Pages that any small transaction changes besides the states' own: rows of reps and spans, indexes, counters, the
// schema page, each once in the -wal.
constexpr std::int64_t kSmallChangePages = 32;
// Free pages that are given back in one transaction: giving back moves pages, which go through the -wal.
constexpr std::int64_t kReleasePages = 256;

std::int64_t pages_of_file(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  return error ? 0 : (static_cast<std::int64_t>(size) + kPageBytes - 1) / kPageBytes;
}

}  // namespace

void MemoryFile::set_consolidate(Consolidate consolidate, std::int64_t rungs) {
  consolidate_ = std::move(consolidate);
  rungs_ = consolidate_ ? std::clamp<std::int64_t>(rungs, 0, memory::kTextOnly - 1) : 0;
}

std::int64_t MemoryFile::used_pages() const {
  return db_->integer("PRAGMA page_count") - db_->integer("PRAGMA freelist_count");
}

std::int64_t MemoryFile::state_pages() const { return std::max<std::int64_t>(0, counter("state_pages")); }

void MemoryFile::recount_state_pages() {
  // In dbstat's aggregate form `pageno` is the number of pages of one table or index.
  const auto pages = db_->integer(
      "SELECT coalesce(sum(pageno), 0) FROM dbstat('main', 1) WHERE name IN "
      "(SELECT name FROM sqlite_schema WHERE tbl_name = 'state_parts')");
  raise_counter("state_pages", pages - counter("state_pages"));
}

// How many pages are missing for a state of `pages` more, after `wal_pages` were written in this transaction.
std::int64_t MemoryFile::shortage(std::int64_t pages, std::int64_t wal_pages) const {
  const auto free = db_->integer("PRAGMA freelist_count");
  const auto growth = std::max<std::int64_t>(0, pages - free);
  return state_pages() + free + growth + wal_pages + pages + kSmallChangePages - budget_bytes_ / kPageBytes;
}

/// One state in the file, with the rows that make it up.
struct MemoryFile::HeldState {
  StateSummary summary;
  std::vector<std::int64_t> reps;
};

std::vector<MemoryFile::HeldState> MemoryFile::held_states(const RepKey* except) const {
  auto row = db_->prepare(
      "SELECT r.span_id, r.kind, r.model_digest, r.prefix_digest, r.id, r.bytes, r.uses, r.written_at, s.asked, "
      "s.asked_at, s.consolidation, m.value, p.value FROM reps r JOIN spans s ON s.id = r.span_id "
      "JOIN digests m ON m.id = r.model_digest JOIN digests p ON p.id = r.prefix_digest WHERE r.blob IS NULL");
  std::map<std::tuple<std::int64_t, std::string, std::int64_t, std::int64_t>, HeldState> groups;
  while (row.step()) {
    if (except != nullptr && row.integer(0) == except->span && row.text(1) == rep_kind_name(except->kind) &&
        row.text(11) == except->model_digest && row.text(12) == except->prefix_digest) {
      continue;
    }
    auto& held = groups[{row.integer(0), std::string(row.text(1)), row.integer(2), row.integer(3)}];
    auto& s = held.summary;
    s.span = row.integer(0);
    s.kind = std::string(row.text(1));
    held.reps.push_back(row.integer(4));
    s.order = std::max(s.order, row.integer(4));
    s.bytes += std::max<std::int64_t>(0, row.integer(5));
    s.uses = std::max(s.uses, row.integer(6));
    s.written_at = std::max(s.written_at, row.integer(7));
    s.asked = row.integer(8);
    s.asked_at = row.integer(9);
    s.rung = row.integer(10);
  }
  std::vector<HeldState> states;
  states.reserve(groups.size());
  for (auto& [group, held] : groups) states.push_back(std::move(held));
  return states;
}

bool MemoryFile::make_room(std::int64_t pages, const RepKey* incoming, Admission admission, std::int64_t& wal_pages,
                           StoreReport& report) {
  const auto limit = budget_bytes_ / kPageBytes;
  // Nothing gives way for what cannot fit even alone.
  if (2 * pages + kSmallChangePages > limit) return false;
  // What an earlier transaction left in the -wal because a reader needed it. Not all of it: states should not go because
  // somebody looks at an old version of a large document.
  if (wal_pages == 0) wal_pages = std::min(pages_of_file(path_.string() + "-wal"), limit / 16);
  const auto missing = [&] {
    // Free pages beyond what is needed are not room as long as the file holds them.
    const auto spare = db_->integer("PRAGMA freelist_count") - pages;
    auto short_of = shortage(pages, wal_pages);
    if (short_of > 0 && spare > 0) {
      const auto count = std::min({spare, kReleasePages, short_of});
      db_->execute("PRAGMA incremental_vacuum(" + std::to_string(count) + ")");
      wal_pages += 2;
      short_of = shortage(pages, wal_pages);
    }
    return short_of;
  };
  give_way(incoming, admission, missing, wal_pages, report);
  return missing() <= 0;
}

// Lets states give way, least useful first, until missing() says 0 pages or nothing may go any more.
void MemoryFile::give_way(const RepKey* incoming, Admission admission, const std::function<std::int64_t()>& missing,
                          std::int64_t& wal_pages, StoreReport& report) {
  if (missing() <= 0) return;
  auto states = held_states(incoming);
  std::stable_sort(states.begin(), states.end(), [&](const HeldState& a, const HeldState& b) {
    return policy_->less_useful(a.summary, b.summary);
  });
  for (auto& state : states) {
    auto& s = state.summary;
    const bool may_drop = policy_->may_drop(s, admission);
    while (true) {
      const auto short_of = missing();
      if (short_of <= 0) return;
      // A state that would not make room by going altogether is not made smaller first.
      const bool would_do = !may_drop || memory::pages_of_blob(s.bytes) > short_of;
      if (!would_do || s.rung < 0 || s.rung >= rungs_ || !policy_->may_shrink(s, admission)) break;
      const bool smaller = shrink(state, wal_pages);
      s.rung = smaller ? s.rung + 1 : s.rung == 0 ? memory::kCannotShrink : rungs_;
      report.shrunk += smaller ? 1 : 0;
      db_->prepare("UPDATE spans SET consolidation = ? WHERE id = ?").bind(s.rung, s.span).run();
    }
    if (!may_drop) continue;
    drop(state);
    wal_pages += 2;
    ++report.dropped;
  }
}

bool MemoryFile::shrink(HeldState& state, std::int64_t& wal_pages) {
  bool smaller = false;
  std::int64_t bytes = 0;
  for (auto& id : state.reps) {
    const auto held = get_by_id(id);
    if (!held) continue;
    bytes += held->bytes;
    auto replacement = consolidate_(*held, state.summary.rung);
    if (!replacement || replacement->blob.size() >= held->blob.size()) continue;
    const auto &from = held->key, &to = replacement->key;
    if (to.kind != from.kind || to.model_digest != from.model_digest || to.layer != from.layer ||
        to.prefix_digest != from.prefix_digest) {
      throw Error(Errc::invalid, "a state was made smaller into one of another kind, model, layer or prefix");
    }
    replacement->key.span = from.span;
    replacement->uses = held->uses;
    replacement->provenance = held->provenance;
    delete_rep(id);
    id = write_rep(from.span, *replacement);
    const auto size = static_cast<std::int64_t>(replacement->blob.size());
    bytes += size - held->bytes;
    wal_pages += memory::pages_of_blob(size);
    smaller = true;
  }
  state.summary.bytes = bytes;
  return smaller;
}

void MemoryFile::drop(const HeldState& state) {
  for (const auto id : state.reps) delete_rep(id);
  db_->prepare("UPDATE spans SET consolidation = ?2 WHERE id = ?1 AND NOT EXISTS "
               "(SELECT 1 FROM reps WHERE span_id = ?1 AND blob IS NULL)")
      .bind(state.summary.span, memory::kTextOnly)
      .run();
}

// Gives back free pages that the budget does not allow; part of the caller's transaction.
void MemoryFile::release_free_pages() {
  const auto excess = state_pages() + db_->integer("PRAGMA freelist_count") - budget_bytes_ / kPageBytes;
  if (excess > 0) db_->execute("PRAGMA incremental_vacuum(" + std::to_string(excess) + ")");
}

StoreReport MemoryFile::set_budget(std::int64_t budget_bytes) {
  if (budget_bytes < kMinBudgetBytes) {
    throw Error(Errc::invalid, "a budget of " + std::to_string(budget_bytes) + " bytes is too small; give at least " +
                                   std::to_string(kMinBudgetBytes));
  }
  set_meta("budget_bytes", std::to_string(budget_bytes));
  budget_bytes_ = budget_bytes;
  StoreReport report;
  for (bool more = true; more;) {
    begin_writing(false);
    Transaction transaction(*db_, Transaction::Kind::write);
    // A little at a time, so that the -wal stays small: one state gives way, or some free pages go.
    const auto limit = budget_bytes_ / kPageBytes;
    const auto free = db_->integer("PRAGMA freelist_count");
    more = state_pages() + free > limit;
    if (more && free > 0) {
      const auto count = std::min({free, kReleasePages, state_pages() + free - limit});
      db_->execute("PRAGMA incremental_vacuum(" + std::to_string(count) + ")");
    } else if (more) {
      std::int64_t wal_pages = 0;
      const auto before = report.shrunk + report.dropped;
      const auto one_step = [&] {
        return report.shrunk + report.dropped > before ? 0 : state_pages() - limit;
      };
      give_way(nullptr, Admission::for_question, one_step, wal_pages, report);
      if (report.shrunk + report.dropped == before) {
        more = false;
        report.obstacle = StoreReport::Obstacle::budget;
        report.reason = path_.string() + ": the policy gives up no more states";
      }
    }
    transaction.commit();
    checkpoint();
  }
  return report;
}

Usage MemoryFile::usage() const {
  Transaction snapshot(*db_, Transaction::Kind::read);
  Usage usage;
  usage.state_bytes = db_->integer("SELECT coalesce(sum(bytes), 0) FROM reps WHERE blob IS NULL");
  usage.state_page_bytes = state_pages() * kPageBytes;
  usage.free_page_bytes = db_->integer("PRAGMA freelist_count") * kPageBytes;
  std::error_code error;
  const auto file = std::filesystem::file_size(path_, error);
  usage.file_bytes = error ? 0 : static_cast<std::int64_t>(file);
  const auto wal = std::filesystem::file_size(path_.string() + "-wal", error);
  usage.wal_bytes = error ? 0 : static_cast<std::int64_t>(wal);
  usage.budget_bytes = budget_bytes_;
  usage.spans = db_->integer("SELECT count(*) FROM spans WHERE leaf");
  usage.spans_with_states = db_->integer("SELECT count(DISTINCT span_id) FROM reps WHERE blob IS NULL");
  usage.consolidated_spans = db_->integer("SELECT count(*) FROM spans WHERE consolidation > 0");
  usage.text_only_spans =
      db_->integer("SELECT count(*) FROM spans WHERE consolidation > 0 AND consolidation = " + std::to_string(memory::kTextOnly));
  return usage;
}

}  // namespace mneme
