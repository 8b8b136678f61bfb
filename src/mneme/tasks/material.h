// Material: passages of texts, cut and tokenized as a memory does it, and the questions on them.
#pragma once

#include "mneme/embed/sentence_encoder.h"
#include "mneme/memory/reader.h"
#include "mneme/tasks/reading_data.h"
#include "mneme/weights/digests.h"

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace mneme::tasks {

/// A passage as a memory cuts and places it.
struct Passage {
  std::size_t source = 0;  ///< into Material::sources
  std::string text;
  std::vector<std::int32_t> ids;          ///< with what the prompt puts around it
  std::vector<std::size_t> questions;     ///< that it answers and that can be learned
  std::vector<std::size_t> unanswerable;  ///< on its paragraphs, which do not answer them
  bool in_vain = false;                   ///< its text answers none of the questions on it
};

/// A question on a passage.
struct PassageQuestion {
  std::string id, text;
  std::vector<std::string> answers;  ///< empty: its paragraph does not answer it
  std::vector<std::int32_t> ids;     ///< with what the prompt puts around it
  /// To be learned, without the mark that ends it: the shortest answer that stands in the passage.
  /// Empty: there is none, or it is longer than the prompt lets an answer be.
  std::vector<std::int32_t> answer;
  std::size_t passage = 0;         ///< that answers it, or does not
  std::vector<std::size_t> parts;  ///< all passages of its paragraph
};

/// What retrieval may take for each other.
struct PassageSource {
  std::vector<std::size_t> passages, questions;  ///< answerable questions only
  at::Tensor passage_vectors, question_vectors;  ///< [n,d] in this order, once they are embedded
};

/// The passages of a split and the questions on them. Lists of passages and questions are of their
/// places here.
struct Material {
  std::vector<Passage> passages;
  std::vector<PassageQuestion> questions;
  std::vector<PassageSource> sources;
  std::vector<std::size_t> answerable;
  /// Questions that have an answer: left out, as a border between passages cuts every one; or kept
  /// but not learned, as it is longer than the prompt lets an answer be.
  std::size_t cut = 0, too_long = 0;
};

/// Cuts the texts as `read` does and finds which passage answers which question: of those that hold
/// an answer within the question's paragraph, the one with most of the question's words. Left out
/// are, with a warning, questions whose every answer a border between passages cuts, and those of more
/// than 448 tokens; a warning counts answers that are too long to be learned, too.
Material material_of(const ReadingData& data, const Reader& reader);

/// Takes all passages and the questions on them, with their answers, into a digest: in their order,
/// as texts and as tokens.
void add_to(Sha256& digest, const Material& material);

/// Embeds all passages and answerable questions, with a progress line; `between` is called between
/// batches.
void embed(Material& material, const SentenceEncoder& encoder,
           const std::function<void()>& between);

}  // namespace mneme::tasks
