// Card: a paper's claim as a program. papers/<slug>.toml names what is shown here, the command that shows it, the
// criteria set before it ran, and, written by `mneme paper run` alone, the last measured result.
//
//   criterion   value = number at `metric`      bound = number x (number at `times`, or 1) + `plus`
//               met   = value <= bound (at_most) or value >= bound (at_least)
//   verdict     shown: all are met; not shown: none is; partly shown: some are
//   stale       the claim or its command differs from what the result was measured for
#pragma once

#include "cli/program/output.h"
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::cli {

/// One bar of a claim. Pointers are JSON pointers (RFC 6901) into what the command prints.
struct Criterion {
  std::string name, metric;
  bool at_most = true;  ///< else at_least
  double number = 0;
  std::optional<std::string> times;
  double plus = 0;
};

struct Claim {
  std::string text;
  std::vector<std::string> command;  ///< arguments of `mneme`
  std::vector<std::string> smoke;    ///< the same at its smallest size; empty: there is none
  std::vector<Criterion> criteria;
};

/// What a claim said before it was changed.
struct Change {
  std::string date, old, reason;  ///< date as 2026-01-31
};

struct Judged {
  std::string name;
  double value = 0, bound = 0;
  bool met = false;
};

enum class Verdict { shown, partly_shown, not_shown };

/// What a card's [result] holds.
struct Measured {
  Verdict verdict = Verdict::not_shown;
  std::vector<Judged> criteria;
  std::string claim_digest, command_digest;  ///< SHA-256, 64 hex digits
  std::int64_t seed = 0;
  std::string commit;   ///< of the program's checkout; "unknown" where there is none
  bool dirty = true;    ///< sources differed from the commit, or nobody knows
  std::string machine;  ///< processor, level of the kernels, threads
  std::string torch;    ///< version of libtorch
  double seconds = 0;
  std::string date;  ///< as 2026-01-31, UTC
};

struct Card {
  std::filesystem::path path;
  std::string slug;
  std::optional<std::int64_t> row;  ///< in the catalogue of systems
  std::string title, authors;
  std::int64_t year = 0;
  std::string source, family;
  std::vector<std::string> components;  ///< kind/name
  std::string reports;
  std::vector<std::string> departs;
  std::string why_not;  ///< why a claim did not hold
  Claim claim;
  std::vector<Change> changed;
  std::optional<Measured> result;
};

/// Reads and checks a card, with its result: that what it records agrees with itself and, if it is not stale, with the
/// claim. Throws Error(not_found), Error(io), and Error(usage) that names file, line or key, and what to do.
[[nodiscard]] Card read_card(const std::filesystem::path& path);
/// The same for a card whose result is about to be replaced: one that cannot be read counts as none.
[[nodiscard]] Card read_card_to_run(const std::filesystem::path& path);

/// The files of all cards in a folder, sorted; an empty folder name means what comes with the program. Throws
/// Error(not_found) if there are none.
[[nodiscard]] std::vector<std::filesystem::path> card_files(const std::filesystem::path& folder);
/// The file of one of them; throws Error(not_found) with the nearest.
[[nodiscard]] std::filesystem::path find_card(const std::vector<std::filesystem::path>& files,
                                              std::string_view slug);

/// A command with those of its words that name files beside the card made absolute.
[[nodiscard]] std::vector<std::string> resolved_command(const Card& card,
                                                        const std::vector<std::string>& command);

/// SHA-256 of the claim's text and criteria, whatever their layout in the file.
[[nodiscard]] std::string claim_digest(const Claim& claim);
/// SHA-256 of the command's words and of the files beside the card that they name.
[[nodiscard]] std::string command_digest(const Card& card);

/// Whether the result was measured for another claim or command than the card now has.
[[nodiscard]] bool stale(const Card& card);
/// The claim has changed since it was measured, and no [[changed]] is dated from then on.
[[nodiscard]] bool change_is_unexplained(const Card& card);

/// "shown", "partly shown" or "not shown".
[[nodiscard]] std::string_view name(Verdict verdict) noexcept;
/// The verdict's name, "stale", or "pending" where nothing was measured.
[[nodiscard]] std::string standing(const Card& card);

/// Holds the criteria against what the command printed. Throws Error(invalid) that names the criterion and where its
/// pointer ends if there is no finite number.
[[nodiscard]] std::vector<Judged> judge(const std::vector<Criterion>& criteria,
                                        const Json& figures);
[[nodiscard]] Verdict verdict_of(const std::vector<Judged>& criteria);

/// Throws Error(io), with what to do, if no result can be written beside this card.
void check_result_can_be_written(const std::filesystem::path& path);
/// Puts the result in place of the one at the end of the card, or behind it; every byte before stays. The file has the old
/// content or the new at every moment. Throws Error(io), or Error(usage) if it is no TOML by now.
void write_result(const std::filesystem::path& path, const Measured& result);

/// Every declared field, with `standing` and `stale`; null where something is not set.
[[nodiscard]] Json as_json(const Card& card);

}  // namespace mneme::cli
