#include "mneme/embed/sentence_encoder.h"

#include "mneme/core/error.h"
#include "mneme/models/architecture.h"
#include "mneme/models/locate.h"
#include "mneme/weights/checkpoint.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <numeric>

namespace mneme {
namespace {

// Tokens in one forward: enough rows for products to pay, few enough for what it computes to stay in the second cache.
constexpr std::int64_t kPackTokens = 128;

/// Texts [begin,end) of `tokens` tokens in all.
struct Pack {
  std::size_t begin, end;
  std::int64_t tokens;
};

/// Mean pooling is what the default encoder's files ask for; another pooling would give other vectors in silence.
void check_pooling(const nlohmann::json& metadata, const std::string& path) {
  if (!metadata.contains("pooling")) return;
  for (const auto& [key, value] : metadata["pooling"].items()) {
    if (key.starts_with("pooling_mode_") && value.is_boolean() &&
        value.get<bool>() != (key == "pooling_mode_mean_tokens")) {
      throw Error(Errc::unsupported,
                  fmt::format("{}: '{}' is not supported: mean pooling is", path, key));
    }
  }
}

/// The mean of rows [n,D], brought to length 1.
std::vector<float> mean_of_length_one(const float* rows, std::int64_t n, std::int64_t D) {
  std::vector<float> out(static_cast<std::size_t>(D));
  for (std::int64_t t = 0; t < n; ++t) {
    for (std::int64_t i = 0; i < D; ++i) out[static_cast<std::size_t>(i)] += rows[t * D + i];
  }
  double square = 0;
  for (auto& x : out) {
    x /= static_cast<float>(std::max<std::int64_t>(n, 1));
    square += static_cast<double>(x) * x;
  }
  const auto length = static_cast<float>(std::max(std::sqrt(square), 1e-12));
  for (auto& x : out) x /= length;
  return out;
}

}  // namespace

std::unique_ptr<SentenceEncoder> SentenceEncoder::load(const std::string& name_or_path,
                                                       Compute compute) {
  const auto located = locate_model(name_or_path);
  const auto checkpoint = open_checkpoint(located.path);
  auto out = std::unique_ptr<SentenceEncoder>(new SentenceEncoder);
  out->name_ = located.name;
  out->path_ = located.path.string();
  out->compute_ = compute;
  const auto architecture = load_architecture(*checkpoint, out->params_);
  if (architecture.spec.name != "encoder") {
    throw Error(
        Errc::mismatch,
        fmt::format("{} is a {} decoder: sentence embeddings want an encoder such as minilm",
                    out->path_, architecture.name));
  }
  const auto& metadata = checkpoint->metadata();
  check_pooling(metadata, out->path_);
  out->model_ = build_model(*checkpoint, architecture, out->params_);
  out->tokenizer_ = tokenizer_from_directory(located.path);
  out->digest_ = checkpoint->digest();
  out->max_tokens_ = out->model_->shape().context;
  if (metadata.contains("sentence_bert_config")) {
    const auto n = metadata["sentence_bert_config"].value("max_seq_length", out->max_tokens_);
    if (n > 2 && n < out->max_tokens_) out->max_tokens_ = n;
  }
  return out;
}

std::vector<TextEmbedding> SentenceEncoder::embed(std::span<const std::string_view> texts) const {
  std::vector<TextEmbedding> out(texts.size());
  std::vector<std::vector<std::int32_t>> ids(texts.size());
  constexpr std::int64_t kTextsPerThread = 4;
  at::parallel_for(0, static_cast<std::int64_t>(texts.size()), kTextsPerThread,
                   [&](std::int64_t first, std::int64_t last) {
                     for (auto i = static_cast<std::size_t>(first);
                          i < static_cast<std::size_t>(last); ++i) {
                       ids[i] = tokenizer_->encode(texts[i], {true, false});
                       out[i].tokens = static_cast<std::int64_t>(ids[i].size());
                       if (out[i].tokens <= max_tokens_) continue;
                       out[i].truncated = true;
                       // The closing [SEP] stays.
                       ids[i][static_cast<std::size_t>(max_tokens_ - 1)] = ids[i].back();
                       ids[i].resize(static_cast<std::size_t>(max_tokens_));
                     }
                   });
  std::vector<Pack> packs;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto n = static_cast<std::int64_t>(ids[i].size());
    if (packs.empty() || packs.back().tokens + n > kPackTokens) packs.push_back({i, i, 0});
    packs.back().end = i + 1;
    packs.back().tokens += n;
  }
  const auto embed_pack = [&](const Pack& pack) {
    const auto texts = pack.end - pack.begin;
    embed_packed(std::span(ids).subspan(pack.begin, texts), pack.tokens,
                 std::span(out).subspan(pack.begin, texts));
  };
  if (packs.size() < 2) {
    for (const auto& pack : packs) embed_pack(pack);
    return out;
  }
  // Each thread takes packs of its own, so that none waits for another and what it computes stays in its cache.
  std::atomic<std::size_t> next{0};
  const bool inference = c10::InferenceMode::is_enabled();
  at::parallel_for(0, at::get_num_threads(), 1, [&](std::int64_t, std::int64_t) {
    const c10::InferenceMode as_caller(inference);
    const c10::NoGradGuard no_gradient;
    for (auto i = next++; i < packs.size(); i = next++) embed_pack(packs[i]);
  });
  return out;
}

void SentenceEncoder::embed_packed(std::span<const std::vector<std::int32_t>> texts,
                                   std::int64_t tokens, std::span<TextEmbedding> out) const {
  Batch batch;
  batch.ids = at::empty({1, tokens}, at::kLong);
  batch.positions = at::empty({1, tokens}, at::kLong);
  batch.segments = at::empty({1, tokens}, at::kLong);
  batch.pattern.by_segment = true;
  batch.compute = compute_ == Compute::automatic ? Compute::int8 : compute_;
  batch.logits_at = LogitsAt::none;
  std::vector<std::int64_t> begins{0};
  for (const auto& text : texts) {
    const auto begin = begins.back(), n = static_cast<std::int64_t>(text.size());
    std::copy(text.begin(), text.end(), batch.ids.mutable_data_ptr<std::int64_t>() + begin);
    auto* positions = batch.positions.mutable_data_ptr<std::int64_t>() + begin;
    std::iota(positions, positions + n, std::int64_t{0});
    std::fill_n(batch.segments.mutable_data_ptr<std::int64_t>() + begin, n,
                static_cast<std::int64_t>(begins.size() - 1));
    begins.push_back(begin + n);
  }
  State none;
  const auto hidden = model_->forward(batch, none).hidden.contiguous();  // [1,tokens,D]
  const auto D = hidden.size(2);
  const auto* rows = hidden.const_data_ptr<float>();
  at::parallel_for(
      0, static_cast<std::int64_t>(texts.size()), 4, [&](std::int64_t i, std::int64_t end) {
        for (; i < end; ++i) {
          const auto at = static_cast<std::size_t>(i);
          out[at].vector =
              mean_of_length_one(rows + begins[at] * D, begins[at + 1] - begins[at], D);
        }
      });
}

TextEmbedding SentenceEncoder::embed(std::string_view text) const {
  return std::move(embed(std::span<const std::string_view>(&text, 1)).front());
}

}  // namespace mneme
