// Representations: what a memory file keeps of a span besides its text, one row each.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// What a representation is. The first four are small and stay with the text; the byte budget
/// bounds the others.
enum class RepKind {
  text,       ///< text made of the span: a summary, a cached answer
  ids,        ///< token ids; `model_digest` is the tokenizer's
  embedding,  ///< one vector for dense retrieval
  pooled,     ///< a few vectors pooled from hidden states
  hidden,     ///< hidden states per token
  slots,      ///< memory slots or tokens that a compressor made
  kv,         ///< keys and values of the attention layers
  state,      ///< a State: whatever a model carries
  latent,     ///< the latent of an autoencoder
};

/// "text", "ids", "embedding", "pooled", "hidden", "slots", "kv", "state" or "latent".
std::string_view rep_kind_name(RepKind kind) noexcept;
/// Whether the byte budget bounds representations of this kind.
bool is_state(RepKind kind) noexcept;

namespace memory {
/// Stands before the codec of a state whose heads hold some of its tokens each.
inline constexpr std::string_view kKept = "kept-";
}  // namespace memory

/// What a representation is found by. All of it must match: a mismatch is a miss, never an
/// approximation.
struct RepKey {
  std::int64_t span = 0;
  RepKind kind = RepKind::kv;
  std::string model_digest;   ///< of the model, embedder or tokenizer that made it
  std::int64_t layer = -1;    ///< the layer, -1: all in one blob; of a cached answer its number
  std::string codec;          ///< spec of the codec that the numbers went through
  std::string prefix_digest;  ///< of what stood before the span, "" for nothing
};

/// A representation without its bytes.
struct RepInfo {
  RepKey key;
  std::int64_t n_vec = 0;  ///< vectors, for states the tokens kept
  std::int64_t d = 0;      ///< numbers in a vector
  std::int64_t bytes = 0;  ///< length of the blob
  std::vector<std::int64_t>
      provenance;  ///< documents that were in its context; empty: its span's own and no other
  std::int64_t uses = 0;          ///< questions that it was loaded for
  std::int64_t written_at_s = 0;  ///< seconds since 1970; set when it is stored
};

/// A representation with its bytes.
struct Rep : RepInfo {
  std::string blob;
};

/// What became of representations that were to be stored.
struct StoreReport {
  enum class Obstacle {
    none,
    read_only,  ///< the file or its folder cannot be written
    busy,       ///< another process was writing
    disk,       ///< the disk is full or failed
    budget,     ///< the byte budget holds nothing less useful
    gone,       ///< the span was replaced or forgotten meanwhile
  };
  std::int64_t stored = 0;      ///< representations stored
  std::int64_t not_stored = 0;  ///< representations not stored, `obstacle` says why
  std::int64_t shrunk = 0;      ///< states made smaller to make room
  std::int64_t dropped = 0;     ///< states that became text only to make room
  Obstacle obstacle = Obstacle::none;
  std::string reason;  ///< the obstacle in one line, empty for none
};

}  // namespace mneme
