// Head rules: which of the rules of `fastgen` a head was given, told from what it keeps.
#pragma once

#include "mneme/text/tokenizer.h"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace mneme::bench {

/// Smallest first, as in kv/fastgen.cpp: each keeps what those before it keep.
enum class HeadRule { special, punctuation, frequent, local, everything };
inline constexpr std::int64_t kHeadRules = 5;

/// What the rules are made of.
struct RuleSettings {
  double frequent = 0.3, local = 0.3;
  std::int64_t first = 1;
  std::vector<std::int64_t> special, punctuation;
};

/// The ids of control tokens, and of tokens that are one mark of ASCII punctuation with or without a space before it.
[[nodiscard]] RuleSettings rules_of(const Tokenizer& tokenizer);

/// "fastgen(recover=0.9, ...)" with these settings.
[[nodiscard]] std::string fastgen_spec(const RuleSettings& settings, double recover);

/// The rule that keeps exactly these of a text's entries, of which all are held: kept [N], ids [N].
[[nodiscard]] HeadRule rule_of(const std::vector<bool>& kept, std::span<const std::int64_t> ids,
                               const RuleSettings& settings);

/// Texts in pairs, the first with the second, the third with the fourth: the share of heads that have the same rule in
/// both. Rules [texts][heads], an even number of texts.
[[nodiscard]] double stable_share(const std::vector<std::vector<HeadRule>>& rules);

}  // namespace mneme::bench
