// A small random language model whose tokens are characters, for the suites on pipelines.
#pragma once

#include "mneme/models/language_model.h"

#include <ATen/ATen.h>

#include "../tiny_models.h"
#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::check {

/// A token a character; characters that it does not know are taken for the first.
class LetterTokenizer final : public Tokenizer {
 public:
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view utf8,
                                                 const EncodeOptions&) const override {
    std::vector<std::int32_t> out;
    for (const char c : utf8) {
      const auto at = kLetters.find(c);
      out.push_back(at == std::string_view::npos ? 0 : static_cast<std::int32_t>(at));
    }
    return out;
  }
  [[nodiscard]] std::int64_t lost_bytes(std::string_view) const override { return 0; }
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids, bool) const override {
    std::string out;
    for (const auto id : ids) out += kLetters.at(static_cast<std::size_t>(id));
    return out;
  }
  [[nodiscard]] std::string token_bytes(std::int32_t id) const override {
    return {kLetters.at(static_cast<std::size_t>(id))};
  }
  [[nodiscard]] std::int64_t vocabulary_size() const override {
    return static_cast<std::int64_t>(kLetters.size());
  }
  [[nodiscard]] std::optional<std::int32_t> id_of(std::string_view) const override { return {}; }
  [[nodiscard]] bool is_special(std::int32_t) const override { return false; }
  [[nodiscard]] std::optional<std::int32_t> bos() const override { return {}; }
  [[nodiscard]] std::optional<std::int32_t> eos() const override { return {}; }
  [[nodiscard]] const std::vector<std::int32_t>& end_of_generation() const override {
    return none_;
  }
  [[nodiscard]] std::string digest() const override { return "letters"; }

 private:
  static constexpr std::string_view kLetters =
      "abcdefghijklmnopqrstuvwxyz .\n0123456789,;:!?'-()AB";
  std::vector<std::int32_t> none_;
};

/// In f32; `context` 0: unbounded.
inline LanguageModel letter_model(std::int64_t context = 0) {
  std::string spec = kTinyDecoder;
  spec.replace(spec.find("context=0"), 9, "context=" + std::to_string(context));
  TinyModel tiny(spec);
  LanguageModel out;
  out.name = "letters";
  out.digest = "random";
  out.compute = Compute::f32;
  out.params = std::move(tiny.params);
  out.model = std::move(tiny.model);
  out.tokenizer = std::make_unique<LetterTokenizer>();
  return out;
}

/// Ids that depend on the seed alone.
inline std::vector<std::int32_t> letter_ids(std::int64_t n, std::uint64_t seed) {
  Generator generator(seed);
  std::vector<std::int32_t> out;
  while (static_cast<std::int64_t>(out.size()) < n)
    out.push_back(static_cast<std::int32_t>(generator.next() % 50));
  return out;
}

/// ln softmax of one row of numbers, by the definition.
inline std::vector<double> log_softmax_of(const at::Tensor& logits) {
  const auto row = logits.reshape({-1}).to(at::kDouble).contiguous();
  const auto* x = row.const_data_ptr<double>();
  double sum = 0;
  for (std::int64_t i = 0; i < row.numel(); ++i) sum += std::exp(x[i]);
  std::vector<double> out;
  for (std::int64_t i = 0; i < row.numel(); ++i) out.push_back(x[i] - std::log(sum));
  return out;
}

}  // namespace mneme::check
