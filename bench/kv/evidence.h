// Evidence recall: how much of the sentences that answer a question attention could still read when the question's last
// token was run, whatever the model made of it.
//
//   recall = mean over layers and KV heads of |R_lh and E| / |E|      E: entries of the evidence; R_lh: what the head could
//            read at that step: what it still holds or, of a store that retrieves, what it reads always and what it chose
#pragma once

#include "mneme/core/state.h"
#include "mneme/mixers/kv_store.h"
#include "mneme/text/tokenizer.h"

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace mneme::bench {

/// The tokens that hold a byte of the given ranges [begin, end) of the text that `ids` are of. Empty where it cannot be told:
/// the tokens' bytes are not the `bytes` bytes of the text.
[[nodiscard]] std::vector<EntryRange> tokens_at(
    const Tokenizer& tokenizer, std::span<const std::int32_t> ids, std::int64_t bytes,
    std::span<const std::pair<std::int64_t, std::int64_t>> ranges);

/// Of a state of one row whose last call ended with the question; `evidence` counted from the state's first token. NaN where
/// a store cannot tell what it read, and where there is no evidence or no store.
[[nodiscard]] double evidence_recall(const State& state, std::span<const EntryRange> evidence);

}  // namespace mneme::bench
