#include "bench/kv/watched_layer.h"

#include "mneme/core/error.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace mneme::bench {
namespace {

// Rows of weights that are held at a time.
constexpr std::int64_t kRows = 256;

}  // namespace

WatchedLayer::WatchedLayer(const AttentionShape& shape, std::int64_t layer,
                           const at::Tensor& queries, const at::Tensor& keys,
                           std::span<const std::int32_t> ids, std::int64_t window)
    : shape_(shape) {
  const auto T = keys.size(1), Hq = queries.size(0), w = std::min(window, T);
  MNEME_ASSERT(static_cast<std::int64_t>(ids.size()) == T && queries.size(1) == T);
  this->layer = layer;
  layers = shape.layers;
  heads = shape.kv_heads;
  group = Hq / heads;
  scale = 1 / std::sqrt(static_cast<double>(keys.size(2)));
  moment = {T, T, true};
  positions_.resize(static_cast<std::size_t>(T));
  std::iota(positions_.begin(), positions_.end(), 0);
  query_positions_.assign(positions_.end() - w, positions_.end());
  ids_ = at::tensor(at::ArrayRef<std::int32_t>(ids.data(), ids.size()), at::kInt).to(at::kLong);
  const auto at = at::arange(T, at::kLong);
  plain_keys_ = keys.to(at::kFloat).contiguous();
  keys_ = mneme::turned(shape, plain_keys_, at).contiguous();
  const auto q = mneme::turned(shape, queries.to(at::kFloat).contiguous(), at);
  queries_ = q.narrow(1, T - w, w).contiguous();
  sums_ = at::zeros({Hq, T});
  for (std::int64_t first = 0; first < T; first += kRows) {
    const auto n = std::min(kRows, T - first);
    sums_ +=
        attention_logits(q.narrow(1, first, n), keys_, at.narrow(0, first, n)).softmax(-1).sum(1);
  }
  window_ = attention_logits(queries_, keys_, at.narrow(0, T - w, w)).softmax(-1);
}

HeadView WatchedLayer::head(std::int64_t h) const {
  return {layer, row, h, positions_, positions_};
}

at::Tensor WatchedLayer::keys(std::int64_t h) const { return keys_[h]; }

at::Tensor WatchedLayer::values(std::int64_t /*head*/) const {
  throw Error(Errc::unsupported,
              "a stage that looks at values cannot be asked about a text that "
              "is watched: only queries and keys are");
}

at::Tensor WatchedLayer::unrotated_keys(std::int64_t h) const { return plain_keys_[h]; }

at::Tensor WatchedLayer::turned(const at::Tensor& x,
                                const std::vector<std::int64_t>& positions) const {
  return mneme::turned(shape_, x.to(at::kFloat).unsqueeze(0), at::tensor(positions, at::kLong))
      .squeeze(0);
}

at::Tensor WatchedLayer::queries(std::int64_t h) const {
  return queries_.narrow(0, h * group, group);
}

at::Tensor WatchedLayer::window_weights(std::int64_t h, std::int64_t queries) const {
  const auto all = window_.size(1), w = std::min(queries, all);
  return window_.narrow(0, h * group, group).narrow(1, all - w, w);
}

at::Tensor WatchedLayer::column_sums(std::int64_t h) const {
  return sums_.narrow(0, h * group, group);
}

at::Tensor WatchedLayer::reconstruction_weights(std::int64_t /*head*/) const {
  throw Error(
      Errc::unsupported,
      "a stage that scores by a second pass over the text cannot be asked about a text that "
      "is watched: it is read once");
}

at::Tensor WatchedLayer::token_ids(std::int64_t /*head*/) const { return ids_; }

at::Tensor WatchedLayer::mean_attention(std::int64_t h) const {
  const auto T = sums_.size(1);
  return column_sums(h).mean(0) / (T - at::arange(T, at::kLong)).to(at::kFloat);
}

void watch_layers(const LanguageModel& model, const AttentionShape& shape,
                  const std::vector<std::int32_t>& ids, std::int64_t window,
                  const std::function<void()>& between,
                  const std::function<void(const WatchedLayer& layer)>& see) {
  watch_attention(
      model, ids, static_cast<std::int64_t>(ids.size()), [&](std::int64_t) { between(); },
      [&](std::int64_t layer, std::int64_t, const at::Tensor& queries, const at::Tensor& keys) {
        see(WatchedLayer(shape, layer, queries, keys, ids, window));
      });
}

}  // namespace mneme::bench
