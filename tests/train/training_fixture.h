// A small model with adapters, examples of every kind, and a folder of its own for each test.
#pragma once

#include "mneme/layers/lora.h"
#include "mneme/train/trainer.h"

#include "../folder_test.h"
#include "../tiny_models.h"
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace mneme::check {

inline constexpr const char* kFourLayers =
    "decoder(vocabulary=50, model=32, layers=4, context=128, mixer=softmax(heads=4, kv_heads=2, "
    "head=8), feed_forward=glu(hidden=48))";

/// A random llama-like model; its tokenizer is missing.
inline std::unique_ptr<LanguageModel> tiny_language_model(const std::string& spec = kFourLayers,
                                                          std::uint64_t seed = 1) {
  TinyModel tiny(spec, seed);
  auto out = std::make_unique<LanguageModel>();
  out->name = "tiny";
  out->architecture = "llama";
  out->digest = "digest-of-tiny-" + std::to_string(seed);
  out->params = tiny.params;
  out->model = std::move(tiny.model);
  return out;
}

/// A LoRA on every matrix of the layers whose both halves are random, so that all gradients count.
inline Params random_adapters(LanguageModel& model, std::uint64_t seed = 5) {
  Params out;
  out.seed(seed);
  attach_lora(model.params, "layers.*.weight", out, 3, 6.0);
  for (const auto& name : out.names("*.lora_b")) {
    auto& b = out.find(name)->tensor;
    b.copy_(0.1 * normal(b.sizes(), ++seed));
  }
  out.requires_grad(true);
  return out;
}

/// An example of T tokens of which about every third is learned.
inline Example random_example(std::int64_t T, std::uint64_t seed) {
  Generator generator(seed);
  Example out;
  for (std::int64_t t = 0; t < T; ++t) {
    out.ids.push_back(static_cast<std::int32_t>(generator.next() % 50));
    const bool learned = t + 1 < T && (t + 2 == T || generator.next() % 3 == 0);
    out.weights.push_back(learned ? 0.5f + 0.25f * static_cast<float>(generator.next() % 4) : 0.f);
  }
  return out;
}

/// The same in segments: a prefix, two parts that see the prefix alone and stand at the same
/// positions, and an end that sees all.
inline Example segmented_example(std::int64_t T, std::uint64_t seed) {
  auto out = random_example(T, seed);
  out.sees = {{}, {0}, {0}, {0, 1, 2}};
  const auto part = T / 4;
  for (std::int64_t t = 0; t < T; ++t) {
    const auto segment = std::min<std::int64_t>(3, t / part);
    out.segments.push_back(static_cast<std::int32_t>(segment));
    out.positions.push_back(segment == 2 ? t - part : t);
  }
  return out;
}

/// A task of given examples.
class FixedTask final : public Task {
 public:
  explicit FixedTask(std::vector<Example> examples) : examples_(std::move(examples)) {}
  [[nodiscard]] std::int64_t size() const override {
    return static_cast<std::int64_t>(examples_.size());
  }
  [[nodiscard]] Example example(std::int64_t index, std::int64_t, Generator&) const override {
    return examples_.at(static_cast<std::size_t>(index));
  }

 private:
  std::vector<Example> examples_;
};

inline std::string content_of(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace mneme::check
