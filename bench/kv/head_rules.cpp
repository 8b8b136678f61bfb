#include "bench/kv/head_rules.h"

#include "mneme/core/error.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace mneme::bench {
namespace {

bool holds(const std::vector<std::int64_t>& ids, std::int64_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

RuleSettings rules_of(const Tokenizer& tokenizer) {
  RuleSettings out;
  const auto n = static_cast<std::int32_t>(tokenizer.vocabulary_size());
  for (std::int32_t id = 0; id < n; ++id) {
    if (tokenizer.is_special(id)) {
      out.special.push_back(id);
      continue;
    }
    auto bytes = tokenizer.token_bytes(id);
    if (bytes.size() == 2 && bytes.front() == ' ') bytes.erase(0, 1);
    if (bytes.size() == 1 && std::ispunct(static_cast<unsigned char>(bytes.front())) != 0)
      out.punctuation.push_back(id);
  }
  return out;
}

std::string fastgen_spec(const RuleSettings& settings, double recover) {
  return fmt::format(
      "fastgen(recover={}, frequent={}, local={}, first={}, special=[{}], punctuation=[{}])",
      recover, settings.frequent, settings.local, settings.first, fmt::join(settings.special, ", "),
      fmt::join(settings.punctuation, ", "));
}

HeadRule rule_of(const std::vector<bool>& kept, std::span<const std::int64_t> ids,
                 const RuleSettings& settings) {
  MNEME_ASSERT(kept.size() == ids.size());
  const auto N = kept.size();
  const auto keeps_only = [&](bool with_punctuation) {
    for (std::size_t j = 0; j < N; ++j) {
      const bool wanted = static_cast<std::int64_t>(j) < settings.first ||
                          holds(settings.special, ids[j]) ||
                          (with_punctuation && holds(settings.punctuation, ids[j]));
      if (kept[j] != wanted) return false;
    }
    return true;
  };
  if (keeps_only(false)) return HeadRule::special;
  if (keeps_only(true)) return HeadRule::punctuation;
  if (std::find(kept.begin(), kept.end(), false) == kept.end()) return HeadRule::everything;
  const auto last =
      std::min(N, static_cast<std::size_t>(std::ceil(settings.local * static_cast<double>(N))));
  return std::find(kept.end() - static_cast<std::ptrdiff_t>(last), kept.end(), false) == kept.end()
             ? HeadRule::local
             : HeadRule::frequent;
}

double stable_share(const std::vector<std::vector<HeadRule>>& rules) {
  MNEME_ASSERT(!rules.empty() && rules.size() % 2 == 0);
  std::size_t same = 0, all = 0;
  for (std::size_t text = 0; text < rules.size(); text += 2) {
    MNEME_ASSERT(rules[text].size() == rules[text + 1].size());
    for (std::size_t h = 0; h < rules[text].size(); ++h)
      same += rules[text][h] == rules[text + 1][h] ? 1 : 0;
    all += rules[text].size();
  }
  return static_cast<double>(same) / static_cast<double>(all);
}

}  // namespace mneme::bench
