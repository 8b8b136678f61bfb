// SentenceEncoder: texts to unit vectors, by an encoder model, pooling and normalisation as its files say.
#pragma once

#include "mneme/core/params.h"
#include "mneme/models/model.h"
#include "mneme/text/tokenizer.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// One text's vector.
struct TextEmbedding {
  std::vector<float> vector;  ///< [d], of length 1
  std::int64_t tokens = 0;    ///< tokens of the text, special ones included, before any cut
  bool truncated = false;     ///< only the first `max_tokens` were seen
};

class SentenceEncoder {
 public:
  /// Loads an encoder by its name ("minilm") or directory; throws Error as load_language_model, and `unsupported` for a
  /// pooling that is not built in.
  static std::unique_ptr<SentenceEncoder> load(const std::string& name_or_path,
                                               Compute compute = Compute::automatic);

  /// Vectors in the order of the texts; texts run together, one behind another, without padding.
  [[nodiscard]] std::vector<TextEmbedding> embed(std::span<const std::string_view> texts) const;
  [[nodiscard]] TextEmbedding embed(std::string_view text) const;

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const std::string& digest() const { return digest_; }
  [[nodiscard]] std::int64_t width() const { return model_->shape().model; }
  [[nodiscard]] std::int64_t max_tokens() const { return max_tokens_; }
  [[nodiscard]] const Tokenizer& tokenizer() const { return *tokenizer_; }
  [[nodiscard]] const Params& params() const { return params_; }

 private:
  SentenceEncoder() = default;
  /// Vectors of texts of `tokens` tokens in all, as one row of segments.
  void embed_packed(std::span<const std::vector<std::int32_t>> texts, std::int64_t tokens,
                    std::span<TextEmbedding> out) const;
  std::string name_, path_, digest_;
  std::int64_t max_tokens_ = 0;
  Compute compute_ = Compute::automatic;
  Params params_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

}  // namespace mneme
