// Consolidation: which stored states become smaller, and then text only, when the byte budget is
// full.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace mneme {

/// One stored state as the policy sees it: everything that one model keeps of one span behind one
/// prefix, over all layers that are stored apart.
struct StateSummary {
  std::int64_t span = 0;
  std::string kind;        ///< "kv", "state", ...
  std::int64_t bytes = 0;  ///< payload bytes, all layers
  std::int64_t uses = 0;   ///< how often this state was loaded for a question
  std::int64_t asked =
      0;  ///< how often its span was placed for a question, with a state or without
  std::int64_t asked_at = 0;    ///< seconds since 1970 of the last time, 0 for never
  std::int64_t written_at = 0;  ///< seconds since 1970
  std::int64_t order = 0;       ///< grows with every state that is written: the tie-breaker
  std::int64_t rung = 0;        ///< how many times it has been made smaller
};

/// Why a state is being stored.
enum class Admission {
  ahead,         ///< computed before anybody asked: takes free room, and what smaller forms free
  for_question,  ///< just used for an answer: may also take the place of less useful states
};

/// Decides what gives way. Implementations are stateless; the memory file asks them inside its
/// transaction.
class ConsolidationPolicy {
 public:
  virtual ~ConsolidationPolicy() = default;

  /// Whether `a` gives way before `b`: a strict weak order.
  [[nodiscard]] virtual bool less_useful(const StateSummary& a, const StateSummary& b) const = 0;

  /// Whether `held` may be made smaller (fewer tokens, fewer bits) to make room for one more state.
  [[nodiscard]] virtual bool may_shrink(const StateSummary& held, Admission incoming) const = 0;

  /// Whether `held` may become text only to make room for one more state.
  [[nodiscard]] virtual bool may_drop(const StateSummary& held, Admission incoming) const = 0;
};

/// The default. States of spans that nobody asked for give way first, then the rarely and least
/// recently asked for; among equals the oldest. States computed ahead of questions shrink others
/// that were never asked for but drop none: what is read first is as likely to be asked for as what
/// is read last, and replacing one by the other only costs time.
std::unique_ptr<ConsolidationPolicy> default_consolidation_policy();

}  // namespace mneme
