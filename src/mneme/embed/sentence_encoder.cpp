#include "mneme/embed/sentence_encoder.h"

#include "mneme/core/error.h"
#include "mneme/models/architecture.h"
#include "mneme/models/locate.h"
#include "mneme/weights/checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <numeric>

namespace mneme {
namespace {

// Tokens in one forward: enough rows for the products to pay, few enough for the activations to stay near the cache.
constexpr std::int64_t kBatchTokens = 2048;

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
  for (std::size_t i = 0; i < texts.size(); ++i) {
    ids[i] = tokenizer_->encode(texts[i], {true, false});
    out[i].tokens = static_cast<std::int64_t>(ids[i].size());
    if (out[i].tokens > max_tokens_) {
      out[i].truncated = true;
      ids[i][static_cast<std::size_t>(max_tokens_ - 1)] = ids[i].back();  // the closing [SEP] stays
      ids[i].resize(static_cast<std::size_t>(max_tokens_));
    }
  }
  std::vector<std::size_t> order(texts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return ids[a].size() > ids[b].size(); });
  for (std::size_t first = 0; first < order.size();) {
    const auto T = static_cast<std::int64_t>(ids[order[first]].size());
    const auto n = std::min(order.size() - first,
                            static_cast<std::size_t>(std::max<std::int64_t>(1, kBatchTokens / T)));
    Batch batch;
    batch.ids = at::zeros({static_cast<std::int64_t>(n), T}, at::kLong);
    batch.compute = compute_;
    batch.logits_at = LogitsAt::none;
    auto lengths = at::empty({static_cast<std::int64_t>(n)});
    bool ragged = false;
    for (std::size_t i = 0; i < n; ++i) {
      const auto& row = ids[order[first + i]];
      std::copy(row.begin(), row.end(),
                batch.ids[static_cast<std::int64_t>(i)].mutable_data_ptr<std::int64_t>());
      batch.lengths.push_back(static_cast<std::int64_t>(row.size()));
      lengths[static_cast<std::int64_t>(i)] = static_cast<float>(row.size());
      ragged = ragged || batch.lengths.back() != T;
    }
    const auto mask = (at::arange(T).unsqueeze(0) < lengths.unsqueeze(1)).unsqueeze(-1);  // [n,T,1]
    if (!ragged) batch.lengths.clear();
    State none;
    const auto hidden = model_->forward(batch, none).hidden;
    auto pooled = hidden.masked_fill(~mask, 0.0).sum(1) / lengths.unsqueeze(1);
    pooled = (pooled / pooled.norm(2, -1, true).clamp_min(1e-12)).contiguous();
    for (std::size_t i = 0; i < n; ++i) {
      const auto* row =
          pooled.const_data_ptr<float>() + static_cast<std::int64_t>(i) * pooled.size(1);
      out[order[first + i]].vector.assign(row, row + pooled.size(1));
    }
    first += n;
  }
  return out;
}

TextEmbedding SentenceEncoder::embed(std::string_view text) const {
  return std::move(embed(std::span<const std::string_view>(&text, 1)).front());
}

}  // namespace mneme
