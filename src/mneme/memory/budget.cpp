// The byte budget: what states, free pages and the -wal of their writing may take beside the text and
// its index, which stay.
//
//   state_pages + free_pages + wal_pages <= budget / page size - min(text_pages, half of that)
//
// state_pages is a counter in the file, kept by the difference in used pages around every change of
// `state_parts`. What is written stands twice for a moment, in the -wal and in the pages set aside
// for it. So a reserve always stays empty, and room is made in transactions that are small enough
// for it, each written back before the next.
#include "mneme/memory/memory_file.h"
#include "mneme/memory/schema.h"
#include "mneme/memory/sqlite.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

namespace mneme {

using memory::kPageBytes;
using memory::Transaction;

namespace {

// Pages that any small transaction changes besides the states' own: rows of reps and spans,
// indexes, counters, the schema page, each once in the -wal.
constexpr std::int64_t kSmallChangePages = 32;
// The reserve for the -wal is this part of the budget, but at most so many pages (8 MiB).
constexpr std::int64_t kReserveShare = 16;
constexpr std::int64_t kMaxReservePages = 1024;

std::int64_t pages_of_file(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  return error ? 0 : (static_cast<std::int64_t>(size) + kPageBytes - 1) / kPageBytes;
}

}  // namespace

void MemoryFile::check_budget(std::int64_t bytes) {
  if (bytes >= kMinBudgetBytes) return;
  static_assert(kMinBudgetBytes % (1 << 20) == 0);
  throw Error(Errc::invalid, "a budget of " + std::to_string(bytes) +
                                 " bytes is too small; give at least " +
                                 std::to_string(kMinBudgetBytes >> 20) + " MiB");
}

void MemoryFile::set_consolidate(Consolidate consolidate, std::int64_t rungs) {
  consolidate_ = std::move(consolidate);
  rungs_ = consolidate_ ? std::clamp<std::int64_t>(rungs, 0, memory::kTextOnly - 1) : 0;
}

std::int64_t MemoryFile::used_pages() const {
  return db_->integer("PRAGMA page_count") - db_->integer("PRAGMA freelist_count");
}

std::int64_t MemoryFile::state_pages() const {
  return std::clamp<std::int64_t>(counter("state_pages"), 0,
                                  std::int64_t{1} << 32);  // no file has more pages
}

// What states, free pages and the -wal may take together: the budget less the text and its index, so
// that the whole file keeps to it. Text is never given up, and never leaves states less than half.
std::int64_t MemoryFile::state_limit_pages() const {
  const auto budget = budget_bytes_ / kPageBytes;
  return budget - std::clamp<std::int64_t>(used_pages() - state_pages(), 0, budget / 2);
}

void MemoryFile::recount_state_pages() {
  // In dbstat's aggregate form `pageno` is the number of pages of one table or index.
  const auto pages = db_->integer(
      "SELECT coalesce(sum(pageno), 0) FROM dbstat('main', 1) WHERE name IN "
      "(SELECT name FROM sqlite_schema WHERE tbl_name = 'state_parts')");
  raise_counter("state_pages", pages - counter("state_pages"));
}

// How many pages are missing for a state of `pages` more when the -wal holds `wal_pages`.
std::int64_t MemoryFile::shortage(std::int64_t pages, std::int64_t wal_pages) const {
  const auto limit = state_limit_pages();
  const auto reserve =
      std::max(pages + kSmallChangePages, std::min(limit / kReserveShare, kMaxReservePages));
  const auto free = db_->integer("PRAGMA freelist_count");
  const auto growth = std::max<std::int64_t>(0, pages - free);
  return state_pages() + free + growth + wal_pages + reserve - limit;
}

// What an earlier transaction left in the -wal because a reader needed it. Not all of it counts:
// states should not go because somebody looks at an old version of a large document.
std::int64_t MemoryFile::leftover_wal_pages() const {
  return std::min(pages_of_file(path_.string() + "-wal"),
                  budget_bytes_ / kPageBytes / kReserveShare);
}

/// One state in the file, with the rows that make it up.
struct MemoryFile::HeldState {
  StateSummary summary;
  std::vector<std::int64_t> reps;
};

std::vector<MemoryFile::HeldState> MemoryFile::held_states(const RepKey* except) const {
  auto row = db_->prepare(
      "SELECT r.span_id, r.kind, r.model_digest, r.prefix_digest, r.id, r.bytes, r.uses, "
      "r.written_at, s.asked, "
      "s.asked_at, s.consolidation, m.value, p.value FROM reps r JOIN spans s ON s.id = r.span_id "
      "JOIN digests m ON m.id = r.model_digest JOIN digests p ON p.id = r.prefix_digest WHERE "
      "r.blob IS NULL");
  std::map<std::tuple<std::int64_t, std::string, std::int64_t, std::int64_t>, HeldState> groups;
  while (row.step()) {
    if (except != nullptr && row.integer(0) == except->span &&
        row.text(1) == rep_kind_name(except->kind) && row.text(11) == except->model_digest &&
        row.text(12) == except->prefix_digest) {
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

MemoryFile::Room MemoryFile::make_room(std::int64_t pages, const RepKey& incoming,
                                       Admission admission, std::int64_t wal_pages,
                                       StoreReport& report) {
  const auto limit = state_limit_pages();
  // Nothing gives way for what cannot fit even alone.
  if (shortage(pages, 0) - state_pages() - db_->integer("PRAGMA freelist_count") > 0)
    return Room::none;
  if (shortage(pages, wal_pages) <= 0) return Room::here;
  const auto leftover = leftover_wal_pages();
  if (wal_pages > leftover) return Room::next_transaction;
  const auto missing = [&] { return shortage(pages, leftover); };
  const auto wal_room =
      limit - state_pages() - db_->integer("PRAGMA freelist_count") - leftover - kSmallChangePages;
  return give_way(&incoming, admission, missing, pages, wal_room, report) ? Room::next_transaction
                                                                          : Room::none;
}

// Lets states give way, least useful first, and gives free pages beyond `keep_free` back, until
// missing() says 0 pages, the -wal room is used or nothing may go any more. Whether anything was
// done.
bool MemoryFile::give_way(const RepKey* incoming, Admission admission,
                          const std::function<std::int64_t()>& missing, std::int64_t keep_free,
                          std::int64_t wal_room, StoreReport& report) {
  auto states = held_states(incoming);
  std::stable_sort(states.begin(), states.end(), [&](const HeldState& a, const HeldState& b) {
    return policy_->less_useful(a.summary, b.summary);
  });
  bool progress = false;
  // Free pages that nobody needs are not room as long as the file holds them. Giving one back may
  // move another.
  const auto release = [&] {
    const auto count =
        std::min({db_->integer("PRAGMA freelist_count") - keep_free, missing(), wal_room / 2});
    if (count <= 0) return;
    db_->execute("PRAGMA incremental_vacuum(" + std::to_string(count) + ")");
    wal_room -= 2 * count;
    progress = true;
  };
  release();
  for (auto& state : states) {
    auto& s = state.summary;
    const bool may_drop = policy_->may_drop(s, admission);
    bool shrunk = s.rung > 0;
    while (true) {
      const auto short_of = missing();
      if (short_of <= 0 || wal_room <= 0) return progress;
      // A state that would not make room by going altogether is not made smaller first.
      const bool would_do = !may_drop || memory::pages_of_blob(s.bytes) > short_of;
      if (!would_do || s.rung < 0 || s.rung >= rungs_ || !policy_->may_shrink(s, admission)) break;
      const auto used = shrink(state, wal_room);
      if (used < 0) {  // its smaller form does not fit what is left of the -wal room
        if (progress) return true;
        break;
      }
      wal_room -= used;
      // A step that makes it no smaller is passed over: the next one may.
      shrunk = shrunk || used > 0;
      ++s.rung;
      if (s.rung >= rungs_ && !shrunk) s.rung = memory::kCannotShrink;
      db_->prepare("UPDATE spans SET consolidation = ? WHERE id = ?").bind(s.rung, s.span).run();
      report.shrunk += used > 0 ? 1 : 0;
      progress = progress || used > 0;
      if (used > 0) release();  // or what it gave up would still be missing
    }
    if (!may_drop) continue;
    drop(state);
    ++report.dropped;
    progress = true;
    wal_room -= 2;
    release();
  }
  return progress;
}

// Makes one state smaller by one rung; the -wal pages that took, 0 if it cannot be smaller, -1 if
// they are too few.
std::int64_t MemoryFile::shrink(HeldState& state, std::int64_t wal_room) {
  std::vector<std::pair<std::size_t, Rep>> smaller;
  std::int64_t bytes = 0, pages = 0;
  for (std::size_t i = 0; i < state.reps.size(); ++i) {
    const auto held = get_by_id(state.reps[i]);
    if (!held) continue;
    bytes += held->bytes;
    auto replacement = consolidate_(*held, state.summary.rung);
    if (!replacement || replacement->blob.size() >= held->blob.size()) continue;
    const auto &from = held->key, &to = replacement->key;
    if (to.kind != from.kind || to.model_digest != from.model_digest || to.layer != from.layer ||
        to.prefix_digest != from.prefix_digest) {
      throw Error(Errc::invalid,
                  "a state was made smaller into one of another kind, model, layer or prefix");
    }
    replacement->key.span = from.span;
    replacement->uses = held->uses;
    replacement->provenance = held->provenance;
    const auto size = static_cast<std::int64_t>(replacement->blob.size());
    bytes += size - held->bytes;
    pages += memory::pages_of_blob(size);
    if (pages > wal_room) return -1;
    smaller.emplace_back(i, std::move(*replacement));
  }
  for (const auto& [i, replacement] : smaller) {
    delete_rep(state.reps[i]);
    state.reps[i] = write_rep(replacement.key.span, replacement);
  }
  state.summary.bytes = bytes;
  return pages;
}

void MemoryFile::drop(const HeldState& state) {
  for (const auto id : state.reps) delete_rep(id);
  db_->prepare(
         "UPDATE spans SET consolidation = ?2 WHERE id = ?1 AND NOT EXISTS "
         "(SELECT 1 FROM reps WHERE span_id = ?1 AND blob IS NULL)")
      .bind(state.summary.span, memory::kTextOnly)
      .run();
}

// Gives back free pages that the budget does not allow; part of the caller's transaction.
void MemoryFile::release_free_pages() {
  const auto excess = state_pages() + db_->integer("PRAGMA freelist_count") - state_limit_pages();
  if (excess > 0) db_->execute("PRAGMA incremental_vacuum(" + std::to_string(excess) + ")");
}

StoreReport MemoryFile::set_budget(std::int64_t budget_bytes) {
  check_budget(budget_bytes);
  set_meta("budget_bytes", std::to_string(budget_bytes));
  budget_bytes_ = budget_bytes;
  StoreReport report;
  // A little at a time, so that the -wal stays small.
  for (bool more = true; more;) {
    begin_writing(false);
    Transaction transaction(*db_, Transaction::Kind::write);
    const auto missing = [&] { return shortage(0, 0); };
    more = missing() > 0 &&
           give_way(nullptr, Admission::for_question, missing, 0, kMaxReservePages, report);
    if (!more && missing() > 0) {
      report.obstacle = StoreReport::Obstacle::budget;
      report.reason = path_.string() + ": the policy gives up no more states";
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
  usage.spans_with_states =
      db_->integer("SELECT count(DISTINCT span_id) FROM reps WHERE blob IS NULL");
  usage.consolidated_spans = db_->integer("SELECT count(*) FROM spans WHERE consolidation > 0");
  usage.text_only_spans =
      db_->integer("SELECT count(*) FROM spans WHERE consolidation > 0 AND consolidation = " +
                   std::to_string(memory::kTextOnly));
  usage.unembedded_spans = db_->integer(
      "SELECT count(*) FROM spans s WHERE s.leaf AND NOT EXISTS (SELECT 1 FROM reps r WHERE "
      "r.span_id = s.id AND r.kind = 'embedding')");
  usage.forget_unfinished = meta("forgetting").has_value();
  return usage;
}

}  // namespace mneme
