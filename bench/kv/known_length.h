// Known length: pipelines are compared on needles at the longest text on which the whole cache still knows them. Where it
// does not, there is nothing for a pipeline to lose.
#pragma once

#include "bench/kv/recall.h"
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace mneme::bench {

inline constexpr double kKnown = 0.8;

/// Ranking at one length.
struct KnownNeedles {
  std::int64_t tokens = 0;      ///< of the texts
  bool known = false;           ///< the whole cache ranks at least kKnown of them right
  std::vector<double> ranking;  ///< share that each pipeline ranks right
};

/// Tries the lengths from the longest on with the whole cache alone until it knows enough, and then all pipelines, the
/// first of which is the whole cache; where it never does, at the shortest length. Needles stand at 0, 25, 50, 75 and 100 %
/// of their texts, `settings.samples` at each. Throws as measure_recall, and Error(usage) where there is no length.
KnownNeedles rank_at_known_length(const LanguageModel& model,
                                  const std::vector<Pipeline>& pipelines, const std::string& task,
                                  std::vector<std::int64_t> lengths,
                                  const std::filesystem::path& data,
                                  const RecallSettings& settings);

}  // namespace mneme::bench
