// A card's command, run by this program in a process of its own and held against the claim's criteria.
#pragma once

#include "cli/program/paper_card.h"
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace mneme::cli {

struct RunSettings {
  std::filesystem::path program = {};  ///< what runs the command; empty: this program
  bool smoke = false;                  ///< the claim's smoke command instead
  std::int64_t seed = 0, threads = 0;  ///< threads 0: as many as there are cores
  bool quiet = false;                  ///< the command too
};

struct ClaimRun {
  Json figures;       ///< what the command printed
  Measured measured;  ///< the verdict on it, for write_result
};

/// The command, or the smoke command; throws Error(usage) if the card has none.
[[nodiscard]] const std::vector<std::string>& command_of(const Card& card, bool smoke);

/// Runs the command with --json and the seed, its stderr being ours. It reads no config file and, of the environment's
/// settings, only those that say where things lie and on what they run (MNEME_DATA, MNEME_LEVEL, MNEME_MODELS,
/// MNEME_PYTHON), so that the card alone says what is measured. Ctrl-C ends it too and throws Interrupted. Throws
/// Error(usage) for a smoke run where the card has none, Error(invalid) if the command fails, prints no JSON value or
/// lacks what a criterion asks for, Error(io) if it cannot be started.
[[nodiscard]] ClaimRun run_claim(const Card& card, const RunSettings& settings);

}  // namespace mneme::cli
