// A tokenizer and a model small enough to be read, for the tests of decoding.
#pragma once

#include "mneme/core/error.h"
#include "mneme/models/language_model.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mneme::testing {

inline constexpr std::int32_t kEnd = 256, kControl = 257, kVocabulary = 260;

/// Ids 0..255 are the bytes, 256 ends a generation, 257 is a control token, 258 "ab" and 259 "\nx" are longer pieces.
class ToyTokenizer final : public Tokenizer {
 public:
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view utf8,
                                                 const EncodeOptions&) const override {
    std::vector<std::int32_t> out;
    for (unsigned char c : utf8) out.push_back(c);
    return out;
  }
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids,
                                   bool skip_special) const override {
    std::string out;
    for (auto id : ids) out += skip_special && is_special(id) ? "" : token_bytes(id);
    return out;
  }
  [[nodiscard]] std::int64_t lost_bytes(std::string_view) const override { return 0; }
  [[nodiscard]] std::string token_bytes(std::int32_t id) const override {
    if (id < 0 || id >= kVocabulary) throw Error(Errc::invalid, "no such token");
    if (id < 256) return std::string(1, static_cast<char>(id));
    return std::vector<std::string>{"<end>", "<control>", "ab",
                                    "\nx"}[static_cast<std::size_t>(id - 256)];
  }
  [[nodiscard]] std::int64_t vocabulary_size() const override { return kVocabulary; }
  [[nodiscard]] std::optional<std::int32_t> id_of(std::string_view) const override {
    return std::nullopt;
  }
  [[nodiscard]] bool is_special(std::int32_t id) const override {
    return id == kEnd || id == kControl;
  }
  [[nodiscard]] std::optional<std::int32_t> bos() const override { return std::nullopt; }
  [[nodiscard]] std::optional<std::int32_t> eos() const override { return kEnd; }
  [[nodiscard]] const std::vector<std::int32_t>& end_of_generation() const override {
    return ends_;
  }
  [[nodiscard]] std::string digest() const override { return std::string(64, '0'); }

 private:
  std::vector<std::int32_t> ends_ = {kEnd};
};

/// Its logits are a hash of all that it was fed, so that a token left out, doubled or put into another row shows; where
/// the script names a token for a position, that one is far ahead.
class ToyModel final : public Model {
 public:
  explicit ToyModel(std::int64_t context = 0, std::vector<std::int32_t> script = {})
      : script_(std::move(script)) {
    shape_.vocabulary = kVocabulary;
    shape_.context = context;
  }

  [[nodiscard]] const ModelShape& shape() const override { return shape_; }
  [[nodiscard]] State start(std::int64_t B) const override {
    State out{{"hash", at::zeros({B}, at::kLong)}};
    out.positions.assign(static_cast<std::size_t>(B), 0);
    return out;
  }
  [[nodiscard]] at::Tensor embed(const at::Tensor& ids) const override {
    return ids.unsqueeze(-1).to(at::kFloat);
  }

  [[nodiscard]] Output forward(const Batch& batch, State& state) const override {
    const auto B = batch.ids.size(0), T = batch.ids.size(1);
    passes.push_back({B, T});
    auto* hash = state.tensor("hash").mutable_data_ptr<std::int64_t>();
    const auto* ids = batch.ids.const_data_ptr<std::int64_t>();
    Output out;
    if (batch.logits_at == LogitsAt::last) out.logits = at::empty({B, kVocabulary});
    for (std::int64_t b = 0; b < B; ++b) {
      auto& position = state.positions[static_cast<std::size_t>(b)];
      position += T;
      if (shape_.context > 0 && position > shape_.context)
        throw Error(Errc::full, "past the context");
      for (std::int64_t t = 0; t < T; ++t)
        hash[b] = (hash[b] * 1000003 + ids[b * T + t] + 1) % 1000000007;
      if (!out.logits.defined()) continue;
      auto* logits = out.logits.mutable_data_ptr<float>() + b * kVocabulary;
      for (std::int64_t v = 0; v < kVocabulary; ++v) {
        logits[v] =
            static_cast<float>((hash[b] * 7919 + v * 104729 + (hash[b] % 97) * v * v) % 10007) /
            2000.f;
      }
      const auto at = static_cast<std::size_t>(position);
      if (at < script_.size() && script_[at] >= 0) logits[script_[at]] = 30.f;
    }
    return out;
  }

  mutable std::vector<std::pair<std::int64_t, std::int64_t>> passes;  // [B,T] of every forward

 private:
  ModelShape shape_;
  std::vector<std::int32_t> script_;
};

inline LanguageModel toy(std::int64_t context = 0, std::vector<std::int32_t> script = {}) {
  LanguageModel out;
  out.model = std::make_unique<ToyModel>(context, std::move(script));
  out.tokenizer = std::make_unique<ToyTokenizer>();
  return out;
}

/// Says `text` after a prompt of `prompt` tokens, then the end token if `end`.
inline LanguageModel saying(std::string_view text, std::size_t prompt, bool end = true,
                            std::int64_t context = 0) {
  std::vector<std::int32_t> script(prompt, -1);
  for (unsigned char c : text) script.push_back(c);
  if (end) script.push_back(kEnd);
  return toy(context, std::move(script));
}

inline const ToyModel& toy_model(const LanguageModel& model) {
  return dynamic_cast<const ToyModel&>(*model.model);
}

}  // namespace mneme::testing
