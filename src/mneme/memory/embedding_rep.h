// A passage's embedding as memory files store it.
#pragma once

#include "mneme/embed/sentence_encoder.h"
#include "mneme/memory/rep.h"

#include <cstdint>

namespace mneme::memory {

/// The representation of a passage: `span` is its index among the spans that are stored with it.
inline Rep embedding_rep(std::int64_t span, const SentenceEncoder& embedder,
                         const TextEmbedding& embedding) {
  Rep rep;
  rep.key = {span, RepKind::embedding, embedder.digest(), -1, "f32", ""};
  rep.n_vec = 1;
  rep.d = embedder.width();
  rep.blob.assign(reinterpret_cast<const char*>(embedding.vector.data()),
                  embedding.vector.size() * sizeof(float));
  return rep;
}

}  // namespace mneme::memory
